"""Instructions on integers and predicates."""

from __future__ import annotations

import operator

import numpy as np

from benchmarks.model.interpreter import Block
from benchmarks.model.sass import Instruction, Operand
from benchmarks.model.values import F64, I32, I64, U32, U64, Action, integer, pair, parted, put, put_pair, single

COMPARISONS = {
    "LT": operator.lt, "LE": operator.le, "GT": operator.gt, "GE": operator.ge, "EQ": operator.eq, "NE": operator.ne,
}  # fmt: skip
LOGIC = {"AND": operator.and_, "OR": operator.or_, "XOR": operator.xor}


def add(i: Instruction) -> Action:
    """IADD3 and its variants: three summands, carries out, carries in; .64 adds pairs of registers."""
    to, written, sources, read = parted(i)
    wide, extended = "64" in i.modifiers, "X" in i.modifiers

    def act(b: Block, mask: np.ndarray) -> None:
        if wide:
            put_pair(b, to, sum((pair(b, o) for o in sources), U64(0)), mask)
            return
        total = np.zeros(b.threads, U64)
        for o in sources:
            if o.negative:  # as ~x + 1: the carry then means that nothing was borrowed
                total = total + (~np.asarray(b.bits(o))).astype(U64) + U64(1)
            else:
                total = total + integer(b, o).astype(U64)
        for o in read if extended else ():
            total = total + b.predicate(o).astype(U64)
        put(b, to, total, mask)
        for level, o in enumerate(written, 1):
            b.set_predicate(o, (total >> U64(32)) >= level, mask)

    return act


def multiply(i: Instruction) -> Action:
    """IMAD and its variants: x * y + z."""
    to, written, (x, y, z), read = parted(i)
    signed = "U32" not in i.modifiers

    def factor(b: Block, o: Operand) -> np.ndarray:
        value = integer(b, o)
        return value.view(I32).astype(I64) if signed else value.astype(U64).astype(I64)

    def act(b: Block, mask: np.ndarray) -> None:
        product = factor(b, x) * factor(b, y)
        if "WIDE" in i.modifiers or "HI" in i.modifiers:
            total = product.view(U64) + pair(b, z)
            put_pair(b, to, total, mask) if "WIDE" in i.modifiers else put(b, to, total >> U64(32), mask)
            for o in written:
                b.set_predicate(o, total < product.view(U64), mask)
            return
        total = (product & 0xFFFFFFFF) + integer(b, z).astype(I64)
        for o in read if "X" in i.modifiers else ():
            total = total + b.predicate(o)
        put(b, to, total, mask)
        for o in written:
            b.set_predicate(o, total >> 32 > 0, mask)

    return act


def shifted_add(i: Instruction) -> Action:
    """LEA: (a << s) + b. With .HI: b plus the upper half of c:a << s."""
    to, written, sources, read = parted(i)

    def act(b: Block, mask: np.ndarray) -> None:
        a, base, amount = integer(b, sources[0]), sources[1], int(sources[-1].value)
        if "HI" in i.modifiers:
            if "SX32" in i.modifiers:
                upper = a.view(I32).astype(I64).view(U64)
            else:
                upper = a.astype(U64) | integer(b, sources[2]).astype(U64) << U64(32)
            a = ((upper << U64(amount)) >> U64(32)).astype(U32)
        else:
            a = a << U32(amount)
        if base.negative:
            total = a.astype(U64) + (~np.asarray(b.bits(base))).astype(U64) + U64(1)
        else:
            total = a.astype(U64) + integer(b, base).astype(U64)
        for o in read if "X" in i.modifiers else ():
            total = total + b.predicate(o).astype(U64)
        put(b, to, total, mask)
        for o in written:
            b.set_predicate(o, (total >> U64(32)) > 0, mask)

    return act


def logic(i: Instruction) -> Action:
    """LOP3, by its truth table. It sets a predicate where the result is not zero."""
    operands = list(i.operands)
    written = [operands.pop(0)] if operands[0].kind.endswith("predicate") else []
    to, x, y, z, table = operands[:5]

    def act(b: Block, mask: np.ndarray) -> None:
        result = lookup(int(table.value), *(integer(b, o) for o in (x, y, z)))
        b.write(to, result, mask)
        for o in written:
            b.set_predicate(o, result != 0, mask)

    return act


def lookup(table: int, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Apply a truth table to three numbers, bit by bit."""
    result = np.zeros(np.broadcast(x, y, z).shape, x.dtype)
    for case in range(8):
        if table >> case & 1:
            result = result | ((x if case & 4 else ~x) & (y if case & 2 else ~y) & (z if case & 1 else ~z))
    return result


def predicate_logic(i: Instruction) -> Action:
    to, other, *sources, table, table2 = i.operands

    def act(b: Block, mask: np.ndarray) -> None:
        values = [b.predicate(o) for o in sources]
        b.set_predicate(to, lookup(int(table.value), *values), mask)
        b.set_predicate(other, lookup(int(table2.value), *values), mask)

    return act


def shift(i: Instruction) -> Action:
    """SHF: shifts the pair c:a."""
    to, _, (x, amount, z), _ = parted(i)
    left, signed, wraps = "L" in i.modifiers, "S32" in i.modifiers or "S64" in i.modifiers, "W" in i.modifiers
    width = 64 if {"U64", "S64"} & set(i.modifiers) else 32

    def act(b: Block, mask: np.ndarray) -> None:
        low, high, by = integer(b, x).astype(U64), integer(b, z).astype(U64), integer(b, amount).astype(I64)
        by = by % width if wraps else np.minimum(by, width)
        both = low | high << U64(32)
        if left:
            by = by.astype(U64)
            result = np.where(by > 63, U64(0), both << np.minimum(by, U64(63)))
            result = (
                result >> U64(32)
                if "HI" in i.modifiers
                else np.where(by > 31, U64(0), result)
                if width == 32
                else result
            )
        else:
            moved = both.view(I64) >> np.minimum(by, 63) if signed else both >> np.minimum(by, 63).astype(U64)
            if not signed:
                moved = np.where(by > 63, U64(0), moved)
            result = moved.view(U64) if signed else moved
            if "HI" in i.modifiers and width == 32:
                upper = high.astype(U32)
                by32 = np.minimum(by, 31)
                result = upper.view(I32) >> by32 if signed else np.where(by > 31, U32(0), upper >> by32.astype(U32))
                result = result.astype(I64).view(U64) if signed else result
        put(b, to, result & U64(0xFFFFFFFF), mask)

    return act


def permute(i: Instruction) -> Action:
    to, _, (x, selector, z), _ = parted(i)

    def act(b: Block, mask: np.ndarray) -> None:
        both = integer(b, x).astype(U64) | integer(b, z).astype(U64) << U64(32)
        chosen = integer(b, selector).astype(U64)
        result = np.zeros(b.threads, U64)
        for k in range(4):
            nibble = chosen >> U64(4 * k)
            byte = both >> (nibble & U64(7)) * U64(8) & U64(0xFF)
            sign = np.where(byte > 127, U64(0xFF), U64(0))
            result = result | np.where(nibble & U64(8) != 0, sign, byte) << U64(8 * k)
        put(b, to, result, mask)

    return act


def compare_integers(i: Instruction) -> Action:
    """ISETP; .EX compares upper halves, and takes the result of comparing the lower halves into account."""
    to, other, x, y, *read = i.operands
    comparison, combine = i.modifiers[0], LOGIC[next(m for m in i.modifiers if m in LOGIC)]
    signed, extended = "U32" not in i.modifiers and "U64" not in i.modifiers, "EX" in i.modifiers
    wide = "S64" in i.modifiers or "U64" in i.modifiers or "64" in i.modifiers

    def act(b: Block, mask: np.ndarray) -> None:
        if wide:
            a, c = (v.view(I64) if signed else v for v in (np.atleast_1d(pair(b, o)) for o in (x, y)))
        else:
            a, c = (v.view(I32) if signed else v for v in (np.atleast_1d(integer(b, o)) for o in (x, y)))
        if extended:
            below = b.predicate(read[1])
            strict = COMPARISONS[comparison.replace("E", "T") if comparison in ("GE", "LE") else comparison](a, c)
            result = strict & below if comparison == "EQ" else strict | ((a == c) & below)
        else:
            result = COMPARISONS[comparison](a, c)
        b.set_predicate(to, combine(result, b.predicate(read[0])), mask)
        b.set_predicate(other, combine(~np.asarray(result), b.predicate(read[0])), mask)

    return act


def select(i: Instruction) -> Action:
    """SEL and FSEL; .64 selects pairs of registers."""
    to, x, y, which = i.operands

    def act(b: Block, mask: np.ndarray) -> None:
        if "64" in i.modifiers:
            put_pair(b, to, np.where(b.predicate(which), pair(b, x), pair(b, y)), mask)
            return
        value = single if i.name.endswith("FSEL") else integer
        put(b, to, np.where(b.predicate(which), value(b, x), value(b, y)), mask)

    return act


def smaller_or_larger(i: Instruction) -> Action:
    """VIMNMX, IMNMX, VIADDMNMX: the smallest where the last predicate holds, else the largest."""
    to, *sources, which = i.operands
    sources = [o for o in sources if not o.kind.endswith("predicate")]

    def act(b: Block, mask: np.ndarray) -> None:
        values = [integer(b, o) for o in sources]
        if i.name.startswith("VIADD"):
            values = [values[0] + values[1], values[2]]
        if "U32" not in i.modifiers:
            values = [np.atleast_1d(v).view(I32) for v in values]
        least, most = values[0], values[0]
        for value in values[1:]:
            least, most = np.minimum(least, value), np.maximum(most, value)
        result = np.where(b.predicate(which), least, most)
        result = np.maximum(result, 0) if "RELU" in i.modifiers else result
        put(b, to, result.astype(I64).view(U64), mask)

    return act


def highest_bit(i: Instruction) -> Action:
    to, x = i.operands[0], i.operands[-1]

    def act(b: Block, mask: np.ndarray) -> None:
        value = np.asarray(integer(b, x), U64)
        place = np.where(value == 0, -1, np.floor(np.log2(np.maximum(value, U64(1)).astype(F64))).astype(I64))
        put(b, to, (31 - place if "SH" in i.modifiers else place).view(U64), mask)

    return act


def count_bits(i: Instruction) -> Action:
    to, x = i.operands

    def act(b: Block, mask: np.ndarray) -> None:
        value = np.broadcast_to(np.asarray(integer(b, x), U32), (b.threads,))
        bits = np.unpackbits(np.ascontiguousarray(value).view(np.uint8).reshape(-1, 4), axis=1)
        put(b, to, bits.sum(1).astype(U64), mask)

    return act


def dot(i: Instruction) -> Action:
    """IDP: the sum of products of 16-bit numbers and bytes, two of each (2A), or of bytes, four of each (4A)."""
    to, _, (x, y, z), _ = parted(i)
    kinds = [m for m in i.modifiers if m in ("U8", "S8", "U16", "S16")]

    def lane(value: np.ndarray, kind: str, k: int) -> np.ndarray:
        bits = int(kind[1:])
        part = (value >> U32(bits * k)) & U32((1 << bits) - 1)
        part = part.astype(I64)
        return np.where(part >> (bits - 1) > 0, part - (1 << bits), part) if kind[0] == "S" else part

    def act(b: Block, mask: np.ndarray) -> None:
        a, c, total = integer(b, x), integer(b, y), integer(b, z).astype(I64)
        pairs = 2 if "2A" in i.modifiers else 4
        shift_by = 2 if "HI" in i.modifiers else 0
        for k in range(pairs):
            total = total + lane(a, kinds[0], k) * lane(c, kinds[1], k + shift_by)
        put(b, to, total.view(U64), mask)

    return act


def pack_bytes(i: Instruction) -> Action:
    """I2IP.U8.S32.SAT: clamps two numbers to bytes, and puts the lower half of a third above them."""
    to, x, y, z = i.operands

    def act(b: Block, mask: np.ndarray) -> None:
        high, low = (np.clip(np.atleast_1d(integer(b, o)).view(I32), 0, 255).astype(U32) for o in (x, y))
        put(b, to, low | high << U32(8) | integer(b, z) << U32(16), mask)

    return act
