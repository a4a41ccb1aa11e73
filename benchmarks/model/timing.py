"""The clocks that blocks of threads need on one multiprocessor, from what their warps ran.

A warp issues its instructions in order, as their control words allow: stall counts, and scoreboards that it sets and
waits for. A quarter of the multiprocessor issues one instruction a clock, and the table in assumptions.py says for how
many clocks that keeps a pipe busy. Shared memory serves the whole multiprocessor with one wavefront a clock, global
memory with the multiprocessor's share of the bandwidth. A barrier holds a warp until the last one of its block has
come, so warps that wait for one another take the time of the slowest.
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
    HOLD,
    LATENCY,
    LOCAL,
    OPERANDS_READ,
    QUEUE,
    WARPGROUP_CLOCKS_PER_COLUMN,
    Gpu,
    pipe_of,
)
from benchmarks.model.interpreter import Trace
from benchmarks.model.sass import Instruction
from benchmarks.model.warpgroups import width_of_product

QUARTERS = 4
SECTOR = 32


@dataclass(frozen=True)
class Step:
    """One instruction of one warp.

    Attributes:
        amount: wavefronts of shared memory, or sectors of global memory, or the barrier (see Trace.costs).
        fresh: sectors that the block had not touched before. At a barrier: 1 if the warp does not come to it, or not
            with all its threads yet.
    """

    instruction: Instruction
    pipe: str
    amount: int = 0
    fresh: int = 0


@dataclass
class Warp:
    """The state of a warp: its next step, and what it waits for."""

    block: int
    quarter: int
    steps: Sequence[Step]
    next: int = 0
    scoreboards: list[float] = field(default_factory=lambda: [0.0] * 6)
    copies: float = 0.0  # when the last asynchronous copy so far arrives
    groups: list[float] = field(default_factory=list)
    products: list[float] = field(default_factory=list)  # when the groups of products of warpgroups are done
    idle: float = 0.0  # clocks at barriers
    arrived: float = 0.0
    ended: float = 0.0


@dataclass
class Result:
    """Clocks until the last warp ended; busy clocks of each pipe, in its busiest quarter; the warps; step counts."""

    clocks: float
    busy: dict[str, float]
    warps: list[Warp]
    counts: Counter


def comes_to_barrier(i: Instruction) -> bool:
    return i.name == "BAR" or (i.name == "WARPGROUP" and "ARRIVE" in i.modifiers)


def steps_of(trace: Trace, code: Sequence[Instruction]) -> list[list[Step]]:
    """Return for each warp what it ran."""
    pipes = [pipe_of(i.name, i.modifiers) for i in code]
    warps = np.array(trace.warps)
    plain = [Step(i, pipe, fresh=int(comes_to_barrier(i))) for i, pipe in zip(code, pipes, strict=True)]
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


@dataclass(frozen=True)
class Traits:
    """What decides on the clocks of an instruction.

    Attributes:
        place: a pipe of a quarter, or what the multiprocessor shares: `shared` or `memory`.
        waits: scoreboards that it waits for.
        pending: if it waits for groups of copies or products, how many groups may still be on their way.
        rate: clocks that it keeps its pipe busy.
        latency: clocks until its result is there.
        stall, write, read: see sass.Instruction.
        copies, commits: whether it starts a copy, or ends a group of copies or products.
        meets: whether it comes to a barrier; `arrives`: without waiting there.
        products: whether it is a product of a warpgroup.
        multiplies: whether it is one, or waits for some.
        phase: what it does at a barrier in shared memory: `arrive`, `wait`, or nothing.
    """

    place: str
    waits: tuple[int, ...]
    pending: int | None
    rate: float
    latency: float
    stall: int
    write: int
    read: int
    copies: bool
    commits: bool
    meets: bool
    arrives: bool
    products: bool
    multiplies: bool
    phase: str


def traits_of(i: Instruction, pipe: str, gpu: Gpu) -> Traits:
    is_shared = pipe == "shared" or i.name in LOCAL
    place = "shared" if is_shared else "memory" if i.name in GLOBAL else pipe
    waits_for_groups = i.name == "DEPBAR" or (i.name == "WARPGROUP" and "DEPBAR" in i.modifiers)
    numbers = (int(o.value) for o in i.operands if o.kind == "number") if waits_for_groups else ()
    is_product = i.name == "HGMMA"
    return Traits(
        place=place,
        waits=tuple(k for k in range(6) if i.wait >> k & 1),
        pending=next(iter(numbers), 0) if waits_for_groups else None,
        rate=width_of_product(i) * WARPGROUP_CLOCKS_PER_COLUMN if is_product else gpu.rates.get(pipe, 0),
        latency=LATENCY.get(i.name, DEFAULT_LATENCY),
        stall=max(1, i.stall, HOLD.get(i.name, 0)),
        write=i.write,
        read=i.read,
        copies=i.name == "LDGSTS",
        commits=i.name == "LDGDEPBAR" or (is_product and any(o.text.startswith("gsb") for o in i.operands)),
        meets=comes_to_barrier(i),
        arrives="ARV" in i.modifiers,
        products=is_product,
        multiplies=i.name in ("HGMMA", "WARPGROUP"),
        phase="" if i.name != "SYNCS" else {"ARRIVE": "arrive", "PHASECHK": "wait"}.get(i.modifiers[0], ""),
    )


class Phases:
    """The barriers in shared memory of all blocks (phases.py): arrivals so far, and the warps that wait."""

    def __init__(self) -> None:
        self.arrivals: Counter = Counter()  # block, address
        self.waiting: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)  # arrivals that they need, warp
        self.counts: dict[tuple[int, int], int] = {}

    def holds(self, warp: Warp, step: Step, order: int, now: float) -> bool:
        """Whether a warp must wait for a phase to end; if so, it is freed by an arrival."""
        key = warp.block, step.amount
        if step.fresh == 0 or self.arrivals[key] >= step.fresh * self.counts.get(key, 1 << 30):
            return False
        self.waiting[key].append((step.fresh, order))
        warp.arrived = now
        return True

    def arrive(self, block: int, step: Step) -> list[int]:
        """Count the arrivals of a warp; return the warps whose phase ends."""
        if step.fresh == 0:  # its predicate is false in all lanes
            return []
        key = block, step.amount & 0xFFFFF
        self.counts[key] = count = step.amount >> 20
        self.arrivals[key] += step.fresh
        ended, waiting = self.arrivals[key] // count, self.waiting[key]
        self.waiting[key] = [one for one in waiting if one[0] > ended]
        return [order for needed, order in waiting if needed <= ended]


class Multiprocessor:
    """One multiprocessor that works on blocks, `resident` at a time; a block is a list of the steps of its warps."""

    def __init__(self, gpu: Gpu, blocks: Sequence[Sequence[Sequence[Step]]], resident: int) -> None:
        self.gpu = gpu
        self.bytes_per_clock = gpu.bandwidth / gpu.multiprocessors / gpu.clock_hz
        self.warps: list[Warp] = []
        self.blocks: list[list[int]] = []  # indices of a block's warps
        for number, block in enumerate(blocks):
            self.blocks.append(list(range(len(self.warps), len(self.warps) + len(block))))
            self.warps += [Warp(number, (len(self.warps) + k) % QUARTERS, steps) for k, steps in enumerate(block)]
        self.resident, self.running = resident, Counter({n: len(block) for n, block in enumerate(blocks)})
        # When each pipe is free again, and how long it was busy: of each quarter, then of what all quarters share
        self.free: list[dict[str, float]] = [defaultdict(float) for _ in range(QUARTERS + 1)]
        self.busy: list[dict[str, float]] = [defaultdict(float) for _ in range(QUARTERS + 1)]
        self.waiting: dict[tuple[int, int], list[int]] = defaultdict(list)  # block, barrier -> warps that wait at it
        self.arrived: Counter = Counter()  # block, barrier -> warps that have come and do not wait
        self.phases = Phases()
        self.counts: Counter = Counter()
        self.known: dict[int, Traits] = {}  # by the id of an instruction; its step keeps it alive

    def run(self) -> Result:
        first = [order for block in self.blocks[: self.resident] for order in block]
        queue, backlog = [(0.0, order) for order in first], self.blocks[self.resident :][::-1]
        heapq.heapify(queue)
        while queue:
            now, order = queue[0]
            warp = self.warps[order]
            step = warp.steps[warp.next]
            traits = self.known.get(id(step.instruction))
            if traits is None:
                traits = self.known[id(step.instruction)] = traits_of(step.instruction, step.pipe, self.gpu)
            start = self.earliest(warp, traits, now)
            if start > now:
                heapq.heapreplace(queue, (start, order))
                continue
            if traits.phase == "wait" and self.phases.holds(warp, step, order, now):
                heapq.heappop(queue)
                continue
            later = self.issue(warp, step, traits, now)
            ends = warp.next == len(warp.steps)
            if later is None or ends:
                heapq.heappop(queue)
            else:
                heapq.heapreplace(queue, (later, order))
            if ends:
                self.running[warp.block] -= 1
                if self.running[warp.block] == 0 and backlog:
                    for member in backlog.pop():
                        heapq.heappush(queue, (now + 1, member))
            for member in self.freed(warp, step, traits, order if later is None else None, now):
                heapq.heappush(queue, (now + 1, member))
        return self.result()

    def result(self) -> Result:
        if any(warp.next < len(warp.steps) for warp in self.warps):
            raise RuntimeError("warps wait at a barrier to which others do not come")
        busy: dict[str, float] = defaultdict(float)
        for pipes in self.busy:
            for pipe, value in pipes.items():
                busy[pipe] = max(busy[pipe], value)
        freed = [value for pipes in self.free for value in pipes.values()]  # writes must arrive too
        clocks = max([0.0, *(warp.ended for warp in self.warps), *freed])
        return Result(clocks, dict(busy), self.warps, self.counts)

    def earliest(self, warp: Warp, traits: Traits, now: float) -> float:
        free, common = self.free[warp.quarter], self.free[-1]
        start = max(now, free["issue"])
        for k in traits.waits:
            start = max(start, warp.scoreboards[k])
        groups = warp.products if traits.multiplies else warp.groups
        if traits.pending is not None and len(groups) > traits.pending:
            start = max(start, groups[-1 - traits.pending])
        if traits.place == "shared":
            return max(start, common["shared"] - QUEUE["shared"])
        if traits.place == "memory":
            return max(start, common["dram"] - QUEUE["dram"], common["cache"] - QUEUE["cache"])
        if traits.products:
            return max(start, free[traits.place] - QUEUE["products"])
        return max(start, free[traits.place])

    def take(self, quarter: int, pipe: str, now: float, clocks: float) -> float:
        """Occupy a pipe; return when it is free again."""
        free = self.free[quarter]
        free[pipe] = done = max(free[pipe], now) + clocks
        self.busy[quarter][pipe] += clocks
        return done

    def issue(self, warp: Warp, step: Step, traits: Traits, now: float) -> float | None:
        """Issue a step; return when the warp may issue again, or None if it now waits at a barrier."""
        self.take(warp.quarter, "issue", now, 1)
        self.counts[step.pipe] += 1
        if traits.place == "memory":
            done = self.global_memory(step, now)
        elif traits.place == "shared":
            done = self.take(-1, "shared", now, max(step.amount, 1)) + traits.latency
        else:
            self.take(warp.quarter, traits.place, now, traits.rate)
            done = now + traits.latency
        if traits.products:
            done = self.product(warp, step, traits, now)
        if traits.copies:
            warp.copies = max(warp.copies, done)
        elif traits.commits and not traits.multiplies:
            warp.groups.append(warp.copies)
        if traits.write < 6:
            warp.scoreboards[traits.write] = max(warp.scoreboards[traits.write], done)
        if traits.read < 6:
            warp.scoreboards[traits.read] = max(warp.scoreboards[traits.read], now + OPERANDS_READ)
        warp.next += 1
        warp.ended = now + 1
        if traits.meets and not traits.arrives and not step.fresh:
            warp.arrived = now
            return None
        return now + traits.stall

    def product(self, warp: Warp, step: Step, traits: Traits, now: float) -> float:
        """Return when a product of a warpgroup is done: its operands are read and its tensor core is through."""
        read = self.take(-1, "shared", now, step.amount)
        done = max(read, self.free[warp.quarter][traits.place]) + traits.latency
        if traits.commits:
            warp.products.append(done)
        return done

    def global_memory(self, step: Step, now: float) -> float:
        """Return when the data arrives: sectors that the block touches first come from DRAM, others from a cache."""
        gpu, known = self.gpu, step.amount - step.fresh
        done = now
        if known:
            done = self.take(-1, "cache", now, known * SECTOR / gpu.cache_bytes) + gpu.cache_latency
        if step.fresh:
            moved = self.take(-1, "dram", now, step.fresh * SECTOR / self.bytes_per_clock)
            done = max(done, moved + gpu.dram_latency)
        return done

    def freed(self, warp: Warp, step: Step, traits: Traits, order: int | None, now: float) -> list[int]:
        """Return the warps that a step frees, which a barrier held; order: see `met`."""
        if traits.phase == "arrive":
            members = self.phases.arrive(warp.block, step)
            for member in members:
                self.warps[member].idle += now - self.warps[member].arrived
            return members
        comes = traits.meets and not step.fresh
        if comes or warp.next == len(warp.steps):
            return self.met((warp.block, step.amount if comes else 0), order, now)
        return []

    def met(self, barrier: tuple[int, int], order: int | None, now: float) -> list[int]:
        """Return the warps that a barrier frees: all that wait there, once the last one has come.

        Args:
            barrier: its block, and its number with the number of warps (see Trace.costs).
            order: of the warp that waits there; None: a warp has come that does not wait, or has ended.
        """
        group = self.waiting[barrier]
        block, warps = barrier[0], barrier[1] >> 8
        if order is not None:
            group.append(order)
        elif warps:
            self.arrived[barrier] += 1
        if not group or len(group) + self.arrived[barrier] < (warps or self.running[block]):
            return []
        for member in group:
            self.warps[member].idle += now - self.warps[member].arrived
        self.waiting[barrier], self.arrived[barrier] = [], 0
        return group


def block_clocks(gpu: Gpu, steps: list[list[Step]], count: float, resident: int) -> tuple[float, Result]:
    """Return the clocks of a multiprocessor for `count` equal blocks, and the result of the first of them.

    At most three times `resident` blocks are run. The clocks of the others follow from the rate of the last third.
    """
    if count <= 3 * resident:
        result = Multiprocessor(gpu, [steps] * math.ceil(count), resident).run()
        return result.clocks, result
    short = Multiprocessor(gpu, [steps] * 2 * resident, resident).run()
    result = Multiprocessor(gpu, [steps] * 3 * resident, resident).run()
    rate = (result.clocks - short.clocks) / resident
    return result.clocks + (count - 3 * resident) * rate, result


def mixed_clocks(
    gpu: Gpu, kinds: Sequence[tuple[list[list[Step]], float]], resident: int
) -> tuple[float, Result] | None:
    """Return the same for blocks of several kinds that run side by side, or None if they are too many to run.

    Args:
        kinds: (steps, number of blocks) of each kind, in the order of the launch.
    """
    share = [count / gpu.multiprocessors for _, count in kinds]
    if math.ceil(sum(share)) > 3 * resident:
        return None
    ends = [math.ceil(sum(share[: k + 1])) for k in range(len(share))]
    numbers = [end - start for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    blocks = [steps for (steps, _), number in zip(kinds, numbers, strict=True) for _ in range(number)]
    result = Multiprocessor(gpu, blocks, resident).run()
    return result.clocks, result
