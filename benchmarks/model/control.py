"""Instructions of warps and of control: shuffles, votes, branches, barriers."""

from __future__ import annotations

import numpy as np

from benchmarks.model.interpreter import ENDED, WARP, Block
from benchmarks.model.sass import Instruction
from benchmarks.model.values import I32, I64, U32, U64, Action, integer, pair, put, put_pair, single


def special_register(i: Instruction) -> Action:
    to, source = i.operands
    is_wide = i.name == "CS2R" and "32" not in i.modifiers

    def act(b: Block, mask: np.ndarray) -> None:
        lanes = np.arange(b.threads, dtype=U32)
        values = {
            "SR_TID.X": lanes,
            "SR_LANEID": lanes % WARP,
            "SR_LTMASK": (1 << lanes % WARP) - 1,
            "SR_CTAID.X": b.place[0],
            "SR_CTAID.Y": b.place[1],
        }
        value = np.broadcast_to(
            np.asarray(values.get(source.text, b.place[2] if "CTAID.Z" in source.text else 0), U32), (b.threads,)
        )
        b.write(to, value, mask)
        if is_wide:
            b.write(to, np.zeros(b.threads, U32), mask, 1)

    return act


def shuffle(i: Instruction) -> Action:
    """SHFL among all lanes of a warp."""
    valid, to, x, by, _ = i.operands
    mode = i.modifiers[0]

    def act(b: Block, mask: np.ndarray) -> None:
        lane, amount = np.arange(b.threads) % WARP, integer(b, by).astype(I64)
        source = {"BFLY": lane ^ amount, "DOWN": lane + amount, "UP": lane - amount, "IDX": amount + 0 * lane}[mode]
        inside = (source >= 0) & (source < WARP)
        source = np.where(inside, source, lane) + np.arange(b.threads) // WARP * WARP
        value = np.broadcast_to(b.bits(x), (b.threads,))
        b.write(to, value[source], mask)
        b.set_predicate(valid, inside, mask)

    return act


def vote(i: Instruction) -> Action:
    """VOTE and VOTEU: the ballot of a warp's threads, and whether the predicate holds in any, or in all, of them."""
    operands = i.operands
    asked = operands[-1]

    def act(b: Block, mask: np.ndarray) -> None:
        says = (b.predicate(asked) & mask).reshape(-1, WARP)
        ballot = (says.astype(U64) << np.arange(WARP, dtype=U64)).sum(1).astype(U32)
        agree = says.any(1) if "ANY" in i.modifiers else (says | ~mask.reshape(-1, WARP)).all(1)
        for o in operands[:-1]:
            if o.kind.endswith("predicate"):
                b.set_predicate(o, np.repeat(agree, WARP), mask)
            else:
                b.write(o, np.repeat(ballot, WARP), mask)

    return act


def warp_sum(i: Instruction) -> Action:
    to, x = i.operands

    def act(b: Block, mask: np.ndarray) -> None:
        values = np.where(mask, integer(b, x), U32(0)).reshape(-1, WARP)
        b.write(to, np.repeat(values.sum(1, dtype=U64).astype(U32), WARP), mask)

    return act


def predicates_to_register(i: Instruction) -> Action:
    to, mask_of = i.operands[0], i.operands[-1]

    def act(b: Block, mask: np.ndarray) -> None:
        bits = sum((b.predicates[k].astype(U32) << U32(k) for k in range(7)), np.zeros(b.threads, U32))
        b.write(to, bits & U32(int(mask_of.value)), mask)

    return act


def register_to_predicates(i: Instruction) -> Action:
    x, mask_of = i.operands[1:3]

    def act(b: Block, mask: np.ndarray) -> None:
        value = integer(b, x)
        for k in range(7):
            if int(mask_of.value) >> k & 1:
                np.copyto(b.predicates[k], (value >> U32(k) & U32(1)).astype(bool), where=mask)

    return act


def branch(i: Instruction) -> Action:
    target = next(o for o in i.operands if o.kind == "number")
    conditions = [o for o in i.operands if o.kind.endswith("predicate")]

    def act(b: Block, mask: np.ndarray) -> None:
        for o in conditions:
            mask = mask & b.predicate(o)
        b.jump(int(target.value), mask)

    return act if "DIV" not in i.modifiers else lambda b, mask: None  # BRA.DIV: only parted warps branch


def jump_to_register(i: Instruction) -> Action:
    """RET jumps to an address in a register; BRX to an address relative to the next instruction."""
    x = i.operands[0]
    offset = next((int(o.value) for o in i.operands if o.kind == "number"), 0)

    def act(b: Block, mask: np.ndarray) -> None:
        base = i.address + 16 if i.name == "BRX" else 0
        b.jump(np.asarray(b.bits(x)).view(I32).astype(I64) + offset + base, mask)

    return act


def end(i: Instruction) -> Action:
    """EXIT; a predicate among its operands is a further condition."""
    conditions = [o for o in i.operands if o.kind.endswith("predicate")]

    def act(b: Block, mask: np.ndarray) -> None:
        for o in conditions:
            mask = mask & b.predicate(o)
        b.places[mask] = ENDED
        waiting = b.held == 0  # the block's barrier does not wait for threads that have ended
        if waiting.any() and waiting.sum() >= (b.places != ENDED).sum():
            b.held[waiting] = -1

    return act


def move(i: Instruction) -> Action:
    """MOV; with .64 it moves a pair of registers."""
    to, x = i.operands[0], i.operands[1]
    if "64" in i.modifiers:
        return lambda b, mask: put_pair(b, to, np.broadcast_to(pair(b, x), (b.threads,)), mask)
    return lambda b, mask: b.write(to, np.broadcast_to(integer(b, x), (b.threads,)), mask)


def absolute(i: Instruction) -> Action:
    to, x = i.operands
    return lambda b, mask: put(b, to, np.abs(np.atleast_1d(integer(b, x)).view(I32).astype(I64)).view(U64), mask)


def no_trouble(i: Instruction) -> Action:
    """FCHK: whether a division must take the slow way, which only extreme values do."""
    to, x, y = i.operands

    def act(b: Block, mask: np.ndarray) -> None:
        top, bottom = np.abs(single(b, x)), np.abs(single(b, y))
        plain = (bottom > 2.0**-100) & (bottom < 2.0**100) & ((top == 0) | (top > 2.0**-80)) & (top < 2.0**100)
        b.set_predicate(to, np.broadcast_to(~plain, (b.threads,)), mask)

    return act
