"""Instructions of warpgroups, four warps that multiply together (sm_90a)."""

from __future__ import annotations

import numpy as np

from benchmarks.model.interpreter import WARP, Block
from benchmarks.model.sass import ZERO, Instruction, Operand
from benchmarks.model.transfers import BANKS, halves_of, words_of
from benchmarks.model.values import F32, I64, U32, U64, Action, integer

GROUP = 4  # warps
ROWS, DEPTH = 64, 16  # of the left matrix
ROW_BYTES = 128  # of a matrix in shared memory, with the 128-byte swizzle
FIRST_BARRIER = 16  # the numbers of warpgroups follow those of the barriers that a block has


def width_of_product(i: Instruction) -> int:
    """Return the columns of the result of HGMMA, from its modifiers, as 64x104x16."""
    return int(i.modifiers[0].split("x")[1])


def descriptor(b: Block, text: str, warp: int, number: int) -> int:
    """Return the start of the left (number 0) or right (1) matrix in shared memory.

    `text` names the first of the four uniform registers that have both descriptors.

    Raises:
        RuntimeError: the matrix has another layout than rows of 128 bytes with the 128-byte swizzle.
    """
    first = int(text[text.index("UR") + 2 : text.index("]")]) + 2 * number
    low, high = (int(b.uniforms[first + word, warp * WARP]) for word in (0, 1))
    if high >> 30 != 1 or high & 0x3FFF != 8 * ROW_BYTES // 16:
        raise RuntimeError(f"the model does not know the layout of matrix descriptor {high:#x} {low:#x}")
    return (low & 0x3FFF) * 16


def matrix(b: Block, start: int, rows: int, columns: int, is_bfloat16: bool) -> np.ndarray:
    """Return [rows, columns] of 16-bit floats in shared memory, as float32."""
    places = start + np.arange(rows)[:, None] * ROW_BYTES + 2 * np.arange(columns)
    places ^= (places >> 7 & 7) << 4
    words = b.shared[places[:, ::2, None] + np.arange(4)].view(U32)[..., 0]
    return halves_of(words, is_bfloat16).reshape(rows, columns)


def fragment(b: Block, o: Operand, warp: int, is_bfloat16: bool) -> np.ndarray:
    """Return 16 rows of the left matrix, which a warp has in registers."""
    words = words_of(b, o, 4).reshape(4, -1, WARP)[:, warp]
    parts = halves_of(np.ascontiguousarray(words), is_bfloat16).reshape(2, 2, 8, 4, 2)  # across, down, row, column
    return parts.transpose(1, 2, 0, 3, 4).reshape(16, DEPTH)


def warpgroup_product(i: Instruction) -> Action:
    """HGMMA: each of the four warps multiplies 16 rows of the left matrix, from registers or from shared memory."""
    to, *sources = i.operands
    left = sources.pop(0) if sources[0].kind == "register" else None
    places, sums = sources[0].text, sources[1]
    condition = next((o for o in sources if o.kind.endswith("predicate")), None)  # whether it adds
    columns, is_bfloat16 = width_of_product(i), "BF16" in i.modifiers
    is_transposed, is_left_transposed = "tnspB" in places, "tnspA" in places
    from_shared = (columns + (0 if left else ROWS)) * DEPTH * 2

    def act(b: Block, mask: np.ndarray) -> None:
        warps = np.flatnonzero(mask.reshape(-1, WARP).any(1))
        lane = np.arange(WARP)
        row, column = lane // 4, lane % 4 * 2
        for warp in warps:
            own = slice(warp * WARP, (warp + 1) * WARP)
            adds = condition is None or bool(b.predicate(condition)[warp * WARP])
            start = descriptor(b, places, warp, 1)
            size = (DEPTH, columns) if is_transposed else (columns, DEPTH)
            right = matrix(b, start, *size, is_bfloat16)
            if left:
                rows = fragment(b, left, warp, is_bfloat16)
            else:
                first, own_rows = descriptor(b, places, warp, 0), slice(warp % GROUP * 16, warp % GROUP * 16 + 16)
                if is_left_transposed:
                    rows = matrix(b, first, DEPTH, ROWS, is_bfloat16).T[own_rows]
                else:
                    rows = matrix(b, first, ROWS, DEPTH, is_bfloat16)[own_rows]
            product = rows @ (right if is_transposed else right.T)
            for word in range(columns // 2):
                place = (row + 8 * (word // 2 % 2), column + word // 4 * 8 + word % 2)
                before = b.bits(sums, word)[own].view(F32) if adds and sums.index != ZERO else F32(0)
                b.registers[to.index + word, own] = (before + product[place]).astype(F32).view(U32)
        b.cost = np.zeros((b.threads // WARP, 2), I64)
        b.cost[warps, 0] = -(-from_shared // (4 * BANKS * GROUP))  # a warp's share of the wavefronts

    return act


def warpgroup_sync(i: Instruction) -> Action:
    """WARPGROUP.ARRIVE, which the four warps run together, and WARPGROUP.DEPBAR."""

    def act(b: Block, mask: np.ndarray) -> None:
        if "ARRIVE" in i.modifiers:
            warps = np.arange(b.threads // WARP)
            b.cost = np.stack([(FIRST_BARRIER + warps // GROUP) | GROUP << 8, np.zeros_like(warps)], 1)

    return act


def registers_granted(i: Instruction) -> Action:
    """USETMAXREG: a warpgroup gets its registers at once."""
    granted = [o for o in i.operands if o.kind == "uniform_predicate"]

    def act(b: Block, mask: np.ndarray) -> None:
        for o in granted:
            b.set_predicate(o, np.ones(b.threads, bool), mask)

    return act


def barrier(i: Instruction) -> Action:
    """BAR.SYNC and BAR.ARV: number of the barrier, number of threads; without the latter, all of the block."""
    number, *count = (o for o in i.operands if o.kind != "predicate")
    waits = "ARV" not in i.modifiers
    is_packed = bool(count) and count[0].kind == "register" and count[0].text == number.text  # threads << 16 | barrier

    def act(b: Block, mask: np.ndarray) -> None:
        numbers = np.broadcast_to(integer(b, number), (b.threads,)).astype(I64)
        threads = np.broadcast_to(integer(b, count[0]) if count else U64(0), (b.threads,)).astype(I64)
        if is_packed:
            numbers, threads = numbers & 0xFFFF, threads >> 16
        cost = np.zeros((b.threads // WARP, 2), I64)
        cost[:, 1] = ~mask.reshape(-1, WARP).any(1)
        for which in np.unique(numbers[mask]):
            chosen = mask & (numbers == which)
            expected = int(threads[chosen][0])
            late = b.meet(chosen, int(which), expected, waits)
            warps = chosen.reshape(-1, WARP).any(1)
            cost[warps, 0] = int(which) | expected // WARP << 8
            cost[:, 1] |= late & warps
        b.cost = cost

    return act
