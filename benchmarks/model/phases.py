"""Barriers in shared memory, whose phases warps wait for (mbarrier, sm_90)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.model.interpreter import WARP, Block
from benchmarks.model.sass import Instruction
from benchmarks.model.transfers import place_of
from benchmarks.model.values import I64, Action, integer

HELD = 1 << 20  # held threads name the barrier's address from here on, above all numbers of other barriers
MOST = 1 << 20  # the word that begins a barrier holds this, less its arrivals, times 2


@dataclass
class Phases:
    """A barrier: how many arrivals end a phase, how many are left, and how many phases have ended."""

    count: int
    left: int
    ended: int = 0


def begin(i: Instruction) -> Action:
    """SYNCS.EXCH.64: writes a barrier's first word."""
    target, word = next(o for o in i.operands if o.kind == "address"), i.operands[-1]

    def act(b: Block, mask: np.ndarray) -> None:
        thread = int(mask.argmax())
        count = MOST - (int(np.broadcast_to(integer(b, word), (b.threads,))[thread]) >> 1 & (2 * MOST - 1))
        b.phases[int(place_of(b, target, False)[thread])] = Phases(count, count)

    return act


def arrive(i: Instruction) -> Action:
    """SYNCS.ARRIVE: each thread arrives once. Costs: the barrier with the arrivals of a phase, and those of a warp."""
    target = next(o for o in i.operands if o.kind == "address")

    def act(b: Block, mask: np.ndarray) -> None:
        places = np.where(mask, place_of(b, target, False), -1)
        b.cost = np.zeros((b.threads // WARP, 2), I64)
        for place in np.unique(places[mask]):
            barrier, chosen = b.phases[int(place)], places == place
            barrier.left -= int(chosen.sum())
            arrivals = chosen.reshape(-1, WARP).sum(1)
            b.cost[arrivals > 0] = np.stack([arrivals * 0 + int(place) + (barrier.count << 20), arrivals], 1)[
                arrivals > 0
            ]
            if barrier.left == 0:
                barrier.left, barrier.ended = barrier.count, barrier.ended + 1
                b.held[b.held == HELD + place] = -1

    return act


def wait(i: Instruction) -> Action:
    """SYNCS.PHASECHK.TRYWAIT: holds threads until a phase has ended. Costs: the barrier, and how many must have."""
    passes, target, parity = i.operands

    def act(b: Block, mask: np.ndarray) -> None:
        places = np.broadcast_to(place_of(b, target, False), (b.threads,))
        ended = np.array([b.phases[int(place)].ended if m else 0 for place, m in zip(places, mask, strict=True)])
        asked = np.broadcast_to(integer(b, parity), (b.threads,)).astype(I64) >> 31 & 1
        waits = mask & (ended % 2 == asked)
        b.places[waits] -= 1  # they come here again
        b.held[waits] = HELD + places[waits]
        b.trace.warps[-1] = (mask & ~waits).reshape(-1, WARP).any(1)
        b.set_predicate(passes, np.ones(b.threads, bool), mask & ~waits)
        b.cost = np.stack([places.reshape(-1, WARP)[:, 0], ended.reshape(-1, WARP).max(1)], 1).astype(I64)

    return act


def phase_barrier(i: Instruction) -> Action | None:
    for name, make in (("EXCH", begin), ("ARRIVE", arrive), ("PHASECHK", wait)):
        if name in i.modifiers:
            return make(i)
    return None
