"""The clocks that blocks of threads need on one multiprocessor, from what their warps ran.

Warps issue in order, as the control words allow: stall counts, scoreboards set and waited for. A quarter issues one
instruction a clock, and each of its pipes is busy for the clocks of the table in assumptions.py; shared memory answers
one wavefront a clock to the whole multiprocessor, global memory its share of the bandwidth. A barrier holds a warp
until the last of its block has come, so roles that wait for one another take the time of the slowest.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.model.assumptions import (
    DEFAULT_LATENCY,
    GLOBAL,
    LATENCY,
    LOCAL,
    OPERANDS_READ,
    QUEUE,
    SHARED,
    Gpu,
    pipe_of,
)
from benchmarks.model.interpreter import Trace
from benchmarks.model.sass import Instruction

QUARTERS = 4
SECTOR = 32


@dataclass(frozen=True)
class Step:
    """One instruction of one warp; amount: wavefronts, or sectors; fresh: sectors that the block had not touched."""

    instruction: Instruction
    pipe: str
    amount: int = 0
    fresh: int = 0


@dataclass
class Warp:
    """Where a warp is, and what it waits for."""

    block: int
    quarter: int
    steps: Sequence[Step]
    next: int = 0
    scoreboards: list[float] = field(default_factory=lambda: [0.0] * 6)
    copies: float = 0.0  # when the asynchronous copies so far have come
    groups: list[float] = field(default_factory=list)
    idle: float = 0.0  # clocks at barriers
    arrived: float = 0.0
    ended: float = 0.0


@dataclass
class Result:
    """Clocks until the last warp ended; busy clocks of each pipe (of the busiest quarter); what each warp did."""

    clocks: float
    busy: dict[str, float]
    warps: list[Warp]
    counts: Counter


def steps_of(trace: Trace, code: Sequence[Instruction]) -> list[list[Step]]:
    """For each warp, what it ran."""
    pipes = [pipe_of(i.name, i.modifiers) for i in code]
    warps = np.array(trace.warps)
    plain = [Step(i, pipe) for i, pipe in zip(code, pipes, strict=True)]
    found = []
    for warp in range(warps.shape[1]):
        steps = []
        for step in np.flatnonzero(warps[:, warp]):
            index = trace.instructions[step]
            cost = trace.costs.get(int(step))
            if cost is None:
                steps.append(plain[index])
            else:
                amount, fresh = cost[warp]
                steps.append(Step(code[index], pipes[index], int(amount), int(fresh)))
        found.append(steps)
    return found


class Multiprocessor:
    """One multiprocessor at work on some blocks, each a list of its warps' steps; `resident` of them at a time."""

    def __init__(self, gpu: Gpu, blocks: Sequence[Sequence[Sequence[Step]]], resident: int) -> None:
        self.gpu = gpu
        self.bytes_per_clock = gpu.bandwidth / gpu.multiprocessors / gpu.clock_hz
        self.warps: list[Warp] = []
        self.blocks: list[list[int]] = []  # places of a block's warps
        for number, block in enumerate(blocks):
            self.blocks.append(list(range(len(self.warps), len(self.warps) + len(block))))
            self.warps += [Warp(number, (len(self.warps) + k) % QUARTERS, steps) for k, steps in enumerate(block)]
        self.resident, self.running = resident, Counter({n: len(block) for n, block in enumerate(blocks)})
        self.free: dict[tuple[int, str], float] = defaultdict(float)  # of a quarter's pipe, or of a shared one (-1)
        self.busy: dict[tuple[int, str], float] = defaultdict(float)
        self.waiting: dict[int, list[int]] = defaultdict(list)  # at a block's barrier
        self.counts: Counter = Counter()

    def run(self) -> Result:
        first = [order for block in self.blocks[: self.resident] for order in block]
        queue, backlog = [(0.0, order) for order in first], self.blocks[self.resident :][::-1]
        heapq.heapify(queue)
        while queue:
            now, order = heapq.heappop(queue)
            warp = self.warps[order]
            start = self.earliest(warp, warp.steps[warp.next], now)
            if start > now:
                heapq.heappush(queue, (start, order))
                continue
            later = self.issue(warp, warp.steps[warp.next], now)
            if warp.next == len(warp.steps):
                self.running[warp.block] -= 1
                if self.running[warp.block] == 0 and backlog:
                    for member in backlog.pop():
                        heapq.heappush(queue, (now + 1, member))
            if later is not None and warp.next < len(warp.steps):
                heapq.heappush(queue, (later, order))
            for member in self.met(warp, order, now, later is None):
                heapq.heappush(queue, (now + 1, member))
        busy = defaultdict(float)
        for (_, pipe), value in self.busy.items():
            busy[pipe] = max(busy[pipe], value)
        clocks = max([0.0, *(warp.ended for warp in self.warps), *self.free.values()])  # what is written arrives too
        return Result(clocks, dict(busy), self.warps, self.counts)

    def earliest(self, warp: Warp, step: Step, now: float) -> float:
        i = step.instruction
        start = max(now, self.free[warp.quarter, "issue"])
        if i.wait:
            start = max([start, *(warp.scoreboards[k] for k in range(6) if i.wait >> k & 1)])
        if i.name == "DEPBAR":
            pending = next((int(o.value) for o in i.operands if o.kind == "number"), 0)
            if len(warp.groups) > pending:
                start = max(start, warp.groups[-1 - pending])
        if step.pipe == "shared" or i.name in LOCAL:
            return max(start, self.free[-1, "shared"] - QUEUE["shared"])
        if step.pipe == "memory":
            return max(start, *(self.free[-1, pipe] - QUEUE[pipe] for pipe in ("dram", "cache")))
        return max(start, self.free[warp.quarter, step.pipe])

    def take(self, place: tuple[int, str], now: float, clocks: float) -> float:
        """Occupy a pipe; when it is free again."""
        self.free[place] = max(self.free[place], now) + clocks
        self.busy[place] += clocks
        return self.free[place]

    def issue(self, warp: Warp, step: Step, now: float) -> float | None:
        """Issue; when the warp may issue again, None where it waits at a barrier."""
        i, gpu = step.instruction, self.gpu
        self.take((warp.quarter, "issue"), now, 1)
        self.counts[step.pipe] += 1
        latency = LATENCY.get(i.name, DEFAULT_LATENCY)
        if i.name in GLOBAL:
            done = self.global_memory(step, now)
        elif i.name in SHARED or i.name == "SHFL" or i.name in LOCAL:
            done = self.take((-1, "shared"), now, max(step.amount, 1)) + latency
        else:
            self.take((warp.quarter, step.pipe), now, gpu.rates[step.pipe])
            done = now + latency
        if i.name == "LDGSTS":
            warp.copies = max(warp.copies, done)
        elif i.name == "LDGDEPBAR":
            warp.groups.append(warp.copies)
        if i.write < 6:
            warp.scoreboards[i.write] = max(warp.scoreboards[i.write], done)
        if i.read < 6:
            warp.scoreboards[i.read] = max(warp.scoreboards[i.read], now + OPERANDS_READ)
        warp.next += 1
        warp.ended = now + 1
        if i.name == "BAR" and "SYNC" in i.modifiers:
            warp.arrived = now
            return None
        return now + max(1, i.stall)

    def global_memory(self, step: Step, now: float) -> float:
        """When the data has come: sectors that the block touches first from DRAM, others from a cache."""
        gpu, known = self.gpu, step.amount - step.fresh
        done = now
        if known:
            done = self.take((-1, "cache"), now, known * SECTOR / gpu.cache_bytes) + gpu.cache_latency
        if step.fresh:
            moved = self.take((-1, "dram"), now, step.fresh * SECTOR / self.bytes_per_clock)
            done = max(done, moved + gpu.dram_latency)
        return done

    def met(self, warp: Warp, order: int, now: float, waits: bool) -> list[int]:
        """The warps of a block that may go on: all, when the last that still runs has come to its barrier."""
        group = self.waiting[warp.block]
        if waits:
            group.append(order)
        if not group or len(group) < self.running[warp.block]:
            return []
        for member in group:
            self.warps[member].idle += now - self.warps[member].arrived
        self.waiting[warp.block] = []
        return group


def block_clocks(gpu: Gpu, steps: list[list[Step]], count: float, resident: int) -> tuple[float, Result]:
    """Clocks of a multiprocessor for `count` equal blocks, and what happened in the first of them.

    More than three times as many as are resident go on at the rate of the third.
    """
    if count <= 3 * resident:
        result = Multiprocessor(gpu, [steps] * math.ceil(count), resident).run()
        return result.clocks, result
    short = Multiprocessor(gpu, [steps] * 2 * resident, resident).run()
    result = Multiprocessor(gpu, [steps] * 3 * resident, resident).run()
    rate = (result.clocks - short.clocks) / resident
    return result.clocks + (count - 3 * resident) * rate, result
