"""Read the values of operands, and write results back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.model.interpreter import Block
from benchmarks.model.sass import Instruction, Operand

Action = Callable[[Block, np.ndarray], None]
U32, I32, U64, I64, F32, F64 = np.uint32, np.int32, np.uint64, np.int64, np.float32, np.float64


def integer(b: Block, o: Operand) -> np.ndarray:
    """Return 32 bits with the operand's sign or inversion applied, as uint32."""
    if o.kind.endswith("predicate"):
        return b.predicate(o).astype(U32)
    value = np.asarray(b.bits(o))
    if o.suffix.startswith("H1"):
        value = value >> U32(16)
    if o.absolute:
        value = np.abs(value.view(I32)).view(U32)
    if o.inverted:
        value = ~value
    return (U32(0) - value) if o.negative else value


def pair(b: Block, o: Operand) -> np.ndarray:
    """Return 64 bits of two registers, a constant or a number, as uint64."""
    if o.kind == "number":
        value = U64(int(o.value) & 0xFFFFFFFFFFFFFFFF)
    else:
        value = np.asarray(b.bits(o), U64) | np.asarray(b.bits(o, 1), U64) << U64(32)
    value = ~value if o.inverted else value
    return U64(0) - value if o.negative else value


def single(b: Block, o: Operand) -> np.ndarray:
    """Return an operand as float32."""
    if o.kind == "number" and isinstance(o.value, float):
        value = np.asarray(F32(o.value))
    else:
        value = np.asarray(b.bits(o)).view(F32)
    value = np.abs(value) if o.absolute else value
    return -value if o.negative else value


def double(b: Block, o: Operand) -> np.ndarray:
    """Return an operand as float64: two registers, a constant or a number."""
    if o.kind == "number":
        value = np.asarray(F64(o.value)) if isinstance(o.value, float) else np.asarray(float(o.value))
    else:
        bits = np.asarray(b.bits(o), U64) | np.asarray(b.bits(o, 1), U64) << U64(32)
        value = bits.view(F64)
    value = np.abs(value) if o.absolute else value
    return -value if o.negative else value


def put(b: Block, o: Operand, value: np.ndarray, mask: np.ndarray) -> None:
    """Write the low 32 bits of an integer, or a float32."""
    value = np.asarray(value)
    b.write(o, value.astype(F32).view(U32) if value.dtype.kind == "f" else value.astype(U64).astype(U32), mask)


def put_pair(b: Block, o: Operand, value: np.ndarray, mask: np.ndarray) -> None:
    value = np.asarray(value)
    bits = value.astype(F64).view(U64) if value.dtype.kind == "f" else value.astype(U64)
    b.write(o, (bits & U64(0xFFFFFFFF)).astype(U32), mask)
    b.write(o, (bits >> U64(32)).astype(U32), mask, 1)


def parted(i: Instruction) -> tuple[Operand, list[Operand], list[Operand], list[Operand]]:
    """Sort the operands: destination, predicates written, sources, predicates read."""
    first, *rest = i.operands
    written = []
    while rest and rest[0].kind.endswith("predicate"):
        written.append(rest.pop(0))
    sources = [o for o in rest if not o.kind.endswith("predicate")]
    return first, written, sources, [o for o in rest if o.kind.endswith("predicate")]
