"""Predict the time of a kernel on a GPU from its machine code."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from benchmarks.model.assumptions import LAUNCH_US, Gpu, resident_blocks
from benchmarks.model.interpreter import PARAMETERS, Block
from benchmarks.model.kernels import Subject, planned_for
from benchmarks.model.launches import Case, Launch
from benchmarks.model.objects import Kernel
from benchmarks.model.operations import action
from benchmarks.model.timing import SECTOR, Result, block_clocks, mixed_clocks, steps_of

SATURATED = 0.8  # a pipe that is busy for this share of the time bounds the kernel; otherwise latency does


@dataclass
class Prediction:
    """What the model says of one kernel at one shape. Times are in microseconds; instructions count those of warps."""

    us: float = 0.0
    floor_us: float = 0.0
    bound: str = ""
    registers: int = 0
    stack_bytes: int = 0
    smem_bytes: int = 0
    threads: int = 0
    blocks: int = 0
    resident: int = 0
    num_bytes: float = 0.0
    instructions: Counter = field(default_factory=Counter)
    wavefronts: float = 0.0
    roles: str = ""
    unmodelled: set[str] = field(default_factory=set)


def predict(subject: Subject, gpu: Gpu, kernels: dict[str, Kernel]) -> Prediction:
    """Predict the time of all launches of a subject, one after the other.

    Raises:
        KeyError: a kernel is not among `kernels`.
        RuntimeError: a launch does not fit the GPU, or the library was built from other sources.
    """
    with planned_for(subject, gpu.multiprocessors, gpu.block_smem, gpu.number == 90) as case:
        found = Prediction(num_bytes=case.num_bytes)
        found.floor_us = found.num_bytes / gpu.bandwidth * 1e6
        longest = 0.0
        for launch in case.launches:
            before = found.us
            add_launch(found, subject, gpu, case, launch, kernels[launch.kernel], longest)
            longest = max(longest, found.us - before)
    found.us = max(found.us, found.floor_us) + LAUNCH_US * len(case.launches)
    found.bound = "dram" if found.us - LAUNCH_US * len(case.launches) <= found.floor_us else found.bound
    return found


def add_launch(
    found: Prediction, subject: Subject, gpu: Gpu, case: Case, launch: Launch, kernel: Kernel, longest: float
) -> None:
    """Add a launch; describe the kernel by it if it takes more microseconds than `longest`, those of another before."""
    check_parameters(kernel, gpu, launch)
    resident = resident_blocks(gpu, kernel.registers, launch.threads, launch.smem_bytes)
    if resident == 0:
        raise RuntimeError(f"{launch.smem_bytes} bytes of shared memory are more than {gpu.name} gives a block")
    kinds = []
    for index, count in subject.blocks(launch):
        block = block_at(index, gpu, case, launch, kernel)
        kinds.append((steps_of(block.run(action), kernel.instructions), count))
        found.unmodelled |= block.unmodelled
    us = 0.0
    if subject.make_last is not None:
        us += last_clocks(subject, gpu, case, launch, kernel) / gpu.clock_hz * 1e6
    for steps, count in kinds:
        for step in (step for warp in steps for step in warp):
            found.instructions[step.pipe] += count
            found.wavefronts += step.amount * count if step.pipe == "shared" else 0
    mixed = mixed_clocks(gpu, kinds, resident) if len(kinds) > 1 else None
    parts = [mixed] if mixed else [block_clocks(gpu, s, max(1.0, n / gpu.multiprocessors), resident) for s, n in kinds]
    busy: Counter = Counter()
    for clocks, result in parts:
        us += clocks / gpu.clock_hz * 1e6
        busy.update({pipe: value / result.clocks * clocks for pipe, value in result.busy.items()})
    found.us += us
    if us > longest:
        found.roles = roles(max(parts, key=lambda part: part[0])[1], launch.threads // 32)
        found.registers, found.stack_bytes = kernel.registers, kernel.stack_bytes
        found.smem_bytes, found.threads, found.blocks = launch.smem_bytes, launch.threads, launch.blocks
        found.resident = resident
        name, value = busy.most_common(1)[0]
        share = value / (us * gpu.clock_hz / 1e6)
        found.bound = name if share >= SATURATED else f"latency ({name} {share:.0%})"


def block_at(index: int, gpu: Gpu, case: Case, launch: Launch, kernel: Kernel) -> Block:
    """The block of this index, before it runs."""
    x, y, _ = launch.grid
    place = (index % x, index // x % y, index // x // y)
    arguments = (launch.grid, launch.threads, launch.smem_bytes, launch.parameters, place)
    return Block(kernel, gpu.number, case.memory, *arguments)


def last_clocks(subject: Subject, gpu: Gpu, case: Case, launch: Launch, kernel: Kernel) -> float:
    """Clocks of what the last block to end does beyond the others, alone on the GPU."""
    assert subject.make_last is not None
    clocks = []
    for is_last in (False, True):
        block = block_at(launch.blocks - 1, gpu, case, launch, kernel)
        if is_last:
            for name in subject.make_last(case, launch.blocks):
                tensor = case.tensors[name]
                block.touched |= set(
                    range(tensor.data_ptr() // SECTOR, -(-(tensor.data_ptr() + tensor.nbytes) // SECTOR))
                )
        clocks.append(block_clocks(gpu, steps_of(block.run(action), kernel.instructions), 1, 1)[0])
    return clocks[1] - clocks[0]


def check_parameters(kernel: Kernel, gpu: Gpu, launch: Launch) -> None:
    expected = kernel.parameter_bytes - PARAMETERS[gpu.number]
    if kernel.parameter_bytes and abs(expected - len(launch.parameters)) >= 8:
        raise RuntimeError(
            f"{kernel.name} takes {expected} bytes of parameters, its sources {len(launch.parameters)}: build again "
            "(python setup.py build_ext --inplace)"
        )


def roles(result: Result, num_warps: int) -> str:
    """Describe the warps of the first block by what they do: number, instructions, clocks, clocks at barriers."""
    groups: dict[int, list] = {}
    for warp in result.warps[:num_warps]:
        near = next((key for key in groups if abs(key - len(warp.steps)) < 0.05 * key), len(warp.steps))
        groups.setdefault(near, []).append(warp)
    return "; ".join(
        f"{len(warps)} x {size} instructions, {warps[0].ended:.0f} clocks, {warps[0].idle:.0f} at barriers"
        for size, warps in groups.items()
    )
