"""Instructions on floats, exact except for the last bits of approximations."""

from __future__ import annotations

import functools

import numpy as np

from benchmarks.model.integers import COMPARISONS, LOGIC
from benchmarks.model.interpreter import Block
from benchmarks.model.sass import Instruction
from benchmarks.model.values import (
    F32,
    F64,
    I64,
    U32,
    U64,
    Action,
    double,
    integer,
    pair,
    parted,
    put,
    put_pair,
    single,
)


def rounded(value: np.ndarray, dtype: type, modifiers: list[str]) -> np.ndarray:
    """Round a wider number to dtype in the direction that the modifiers name."""
    result = np.asarray(value).astype(dtype)
    return directed(result, value - result, modifiers)


def directed(result: np.ndarray, rest: np.ndarray, modifiers: list[str]) -> np.ndarray:
    """Turn a result rounded to nearest into one rounded as the modifiers say. rest: the exact value - result."""
    infinity = result.dtype.type(np.inf)
    if "RM" in modifiers:
        return np.where(rest < 0, np.nextafter(result, -infinity), result)
    if "RP" in modifiers:
        return np.where(rest > 0, np.nextafter(result, infinity), result)
    return result


def exact_sum(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rounded sum of doubles, and exact sum - rounded sum (Knuth)."""
    total = x + y
    part = total - x
    return total, (x - (total - part)) + (y - part)


def exact_product(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rounded product of doubles, and exact product - rounded product (Dekker)."""

    def halves_of(value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scaled = value * 134217729.0  # 2**27 + 1
        high = scaled - (scaled - value)
        return high, value - high

    product, (xh, xl), (yh, yl) = x * y, halves_of(x), halves_of(y)
    return product, ((xh * yh - product) + xh * yl + xl * yh) + xl * yl


def float_arithmetic(i: Instruction) -> Action:
    """FADD, FMUL, FFMA: computed in double and rounded once."""
    to, _, sources, _ = parted(i)

    def act(b: Block, mask: np.ndarray) -> None:
        x, y, *z = (single(b, o).astype(F64) for o in sources)
        value = x + y if i.name.endswith("ADD") else x * y + (z[0] if z else 0)
        value = rounded(value, F32, i.modifiers)
        put(b, to, np.clip(value, 0, 1) if "SAT" in i.modifiers else value, mask)

    return act


def double_arithmetic(i: Instruction) -> Action:
    """DADD, DMUL, DFMA, rounded once."""
    to, _, sources, _ = parted(i)

    def act(b: Block, mask: np.ndarray) -> None:
        x, y, *z = (np.broadcast_to(double(b, o), (b.threads,)) for o in sources)
        if i.name == "DADD":
            value, rest = exact_sum(x, y)
        else:
            value, rest = exact_product(x, y)
            if z:
                value, more = exact_sum(value, z[0])
                sure = np.isfinite(rest) & np.isfinite(more)
                value, rest = exact_sum(value, np.where(sure, more + rest, 0.0))
        put_pair(b, to, directed(value, rest, i.modifiers), mask)

    return act


def compare_floats(i: Instruction) -> Action:
    """FSETP and DSETP; a comparison that ends with U holds for NaN too."""
    to, other, x, y, which = i.operands
    name, combine = i.modifiers[0], LOGIC[next(m for m in i.modifiers if m in LOGIC)]
    read = double if i.name[0] == "D" else single

    def act(b: Block, mask: np.ndarray) -> None:
        a, c = read(b, x), read(b, y)
        unordered = np.isnan(a) | np.isnan(c)
        if name in ("NAN", "NUM"):
            result = unordered if name == "NAN" else ~unordered
        elif name in ("MIN", "MAX"):
            result = a < c if name == "MIN" else a > c
        else:
            result = COMPARISONS[name.removesuffix("U")](a, c) & ~unordered
            result = result | unordered if name.endswith("U") else result
        result = np.broadcast_to(result, (b.threads,))
        b.set_predicate(to, combine(result, b.predicate(which)), mask)
        b.set_predicate(other, combine(~result, b.predicate(which)), mask)

    return act


def float_extreme(i: Instruction) -> Action:
    """FMNMX of two and FMNMX3 of three values: the smallest where the last predicate holds, else the largest."""
    to, *others, which = i.operands
    sources = [o for o in others if not o.kind.endswith("predicate")]
    least, most = (np.minimum, np.maximum) if "NAN" in i.modifiers else (np.fmin, np.fmax)

    def act(b: Block, mask: np.ndarray) -> None:
        values = [single(b, o) for o in sources]
        put(b, to, np.where(b.predicate(which), functools.reduce(least, values), functools.reduce(most, values)), mask)

    return act


SPECIAL = {
    "EX2": np.exp2, "LG2": np.log2, "RCP": np.reciprocal, "RSQ": lambda x: 1 / np.sqrt(x), "SQRT": np.sqrt,
    "SIN": np.sin, "COS": np.cos, "TANH": np.tanh,
}  # fmt: skip


def special_function(i: Instruction) -> Action:
    to, x = i.operands
    name = i.modifiers[0]

    def act(b: Block, mask: np.ndarray) -> None:
        if name.endswith("64H"):  # upper halves of doubles
            is_number = isinstance(x.value, float) and x.kind == "number"
            value = F64(x.value) if is_number else (np.asarray(b.bits(x), U64) << U64(32)).view(F64)
            result = SPECIAL[name[:3]](value)
            b.write(to, np.broadcast_to((result.view(U64) >> U64(32)).astype(U32), (b.threads,)), mask)
        else:
            put(b, to, SPECIAL[name](single(b, x).astype(F32)), mask)

    return act


def to_integer(i: Instruction) -> Action:
    """F2I: a float to an integer, clamped to its range; NaN gives 0."""
    to, x = i.operands
    source = double if "F64" in i.modifiers else single
    rounding = {"TRUNC": np.trunc, "FLOOR": np.floor, "CEIL": np.ceil}
    toward = next((rounding[m] for m in i.modifiers if m in rounding), np.rint)
    kind = next((m for m in i.modifiers if m in ("U32", "S64", "U64", "U16", "S16", "U8")), "S32")
    bits, low = int(kind[1:]), 0 if kind[0] == "U" else -(1 << (int(kind[1:]) - 1))
    high = low + (1 << bits) - 1

    def act(b: Block, mask: np.ndarray) -> None:
        value = toward(np.nan_to_num(source(b, x).astype(np.longdouble), nan=0.0))
        number = np.clip(value, low, high).astype(I64 if low else U64)
        result = (
            np.broadcast_to(number, (b.threads,)).view(U64) if number.ndim else np.full(b.threads, number).view(U64)
        )
        put_pair(b, to, result, mask) if bits == 64 else put(b, to, result & U64(0xFFFFFFFF), mask)

    return act


def from_integer(i: Instruction) -> Action:
    """I2F and I2FP: an integer to a float."""
    to, x = i.operands
    kinds = ("S32", "U32", "S64", "U64", "U16", "S16", "U8", "S8")
    kind = next((m for m in i.modifiers if m in kinds), "S32")
    bits = int(kind[1:])

    def act(b: Block, mask: np.ndarray) -> None:
        value = np.atleast_1d(pair(b, x) if bits == 64 else integer(b, x).astype(U64) & U64((1 << bits) - 1))
        if x.suffix.startswith("B") and bits == 8:
            value = integer(b, x).astype(U64) >> U64(8 * int(x.suffix[1])) & U64(255)
        if kind[0] == "S":
            value = (value << U64(64 - bits)).view(I64) >> (64 - bits)
        wide = value.astype(np.longdouble)
        if "F64" in i.modifiers:
            put_pair(b, to, rounded(wide, F64, i.modifiers), mask)
        else:
            put(b, to, rounded(wide, F32, i.modifiers), mask)

    return act


def to_bfloat16(value: np.ndarray) -> np.ndarray:
    """Round float32 numbers to bfloat16, to nearest even; return the bits, as uint32."""
    bits = np.asarray(value, F32).view(U32).astype(U64)
    result = ((bits + U64(0x7FFF) + ((bits >> U64(16)) & U64(1))) >> U64(16)).astype(U32)
    return np.where(np.isnan(value), U32(0x7FFF), result)


def half_bits(value: np.ndarray, modifiers: list[str]) -> np.ndarray:
    if "BF16" in modifiers:
        return to_bfloat16(value)
    return np.asarray(value, np.float16).view(np.uint16).astype(U32)


def pack_floats(i: Instruction) -> Action:
    """F2FP: two float32 to 16-bit floats in one register, the first in the upper half."""
    to, _, sources, _ = parted(i)

    def act(b: Block, mask: np.ndarray) -> None:
        high, low = (half_bits(single(b, o), i.modifiers) for o in sources[:2])
        put(b, to, low | high << U32(16), mask)

    return act


def float_to_float(i: Instruction) -> Action:
    """F2F: its modifiers name the destination, then the source, of F16, BF16, F32, F64."""
    to, x = i.operands
    target, source = [m for m in i.modifiers if m in ("F16", "BF16", "F32", "F64")][:2]

    def act(b: Block, mask: np.ndarray) -> None:
        value = double(b, x) if source == "F64" else single(b, x)
        if target == "F64":
            put_pair(b, to, value.astype(F64), mask)
        elif target == "F32":
            put(b, to, value.astype(F32), mask)
        else:
            put(b, to, half_bits(value, i.modifiers), mask)

    return act


def round_to_whole(i: Instruction) -> Action:
    to, x = i.operands
    toward = {"TRUNC": np.trunc, "FLOOR": np.floor, "CEIL": np.ceil}
    call = next((toward[m] for m in i.modifiers if m in toward), np.rint)

    def act(b: Block, mask: np.ndarray) -> None:
        if "F64" in i.modifiers:
            put_pair(b, to, call(double(b, x)), mask)
        else:
            put(b, to, call(single(b, x)), mask)

    return act


def halves(i: Instruction) -> Action:
    """HFMA2 as the compiler uses it: to load a constant of two 16-bit numbers. None for any other use."""
    to, _, sources, _ = parted(i)
    dtype = np.float16
    numbers = [o for o in sources if o.kind == "number"]
    if len(numbers) < 2:
        return None
    bits = [to_bfloat16(F32(o.value)) if "BF16_V2" in i.modifiers else dtype(o.value).view(np.uint16) for o in numbers]
    constant = U32(int(bits[-2]) << 16 | int(bits[-1]))
    return lambda b, mask: b.write(to, np.full(b.threads, constant), mask)
