"""The time of a whole batch of augment, from what the model says of single images.

An image takes what a plain one takes, plus what each of its operations adds to a plain image, plus noise by the pixels
that are erased. Its plan is drawn as the recipe draws it. Blocks go to multiprocessors in the launch's order, each to
the one that is free first (assumptions.py). GPUs on which the images lie in global memory have no rows.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch

from benchmarks import bench_augment
from benchmarks.model import launches
from benchmarks.model.assumptions import LAUNCH_US, Gpu
from benchmarks.model.kernels import AUGMENT, SUBJECTS, Subject, one_view, planned_for
from benchmarks.model.launches import Case
from lgfast.ops import augment_plan
from lgfast.spec.augment import RAND_AUGMENT_OPS

SPEC = bench_augment.SPEC
# Operations at the recipe's usual strength; all others look at one value only and cost nothing beyond a plain image.
STRENGTHS = {
    "AutoContrast": 0.0, "Equalize": 0.0, "Rotate": 27.0, "Color": 1.9, "Contrast": 1.9, "Sharpness": 1.9,
    "ShearX": 0.27, "ShearY": 0.27, "TranslateX": 0.405, "TranslateY": 0.405,
}  # fmt: skip
ERASED_SIDE = 100
PLAIN, ERASED, ORDER = "augment_plain", "augment_erased", "augment_order"
BATCHES = {"augment_batch_128": 128, "augment_batch_512": 512}


def drawn_plan(batch: int) -> torch.Tensor:
    """Return the plan of a batch as the recipe draws it; seed and epoch 0."""
    source = bench_augment.Source(batch, torch.device("cpu"), torch.bfloat16)
    return augment_plan(SPEC, source.sizes, source.indices, source.counter)


def ordering() -> Case:
    """Return the launch that sorts the images of the largest batch."""
    batch = max(BATCHES.values())
    case = launches.views(drawn_plan(batch), torch.zeros(batch, 32, 32, 3, dtype=torch.uint8))
    return replace(case, launches=case.launches[:1], num_bytes=0)


def part_of(operation: str) -> str:
    return f"augment_{operation.lower()}"


PARTS: dict[str, Subject] = {
    part_of(name): Subject(
        partial(one_view, (RAND_AUGMENT_OPS.index(name), strength)), shape=f"32->224, one image, {name}", **AUGMENT
    )
    for name, strength in STRENGTHS.items()
}
PARTS[ERASED] = Subject(partial(one_view, erased_side=ERASED_SIDE), shape="32->224, one image, erased", **AUGMENT)
PARTS[ORDER] = Subject(ordering, ("augment/augment.cu",), "B=512", options=["--fmad=false"])


def image_us(row: Sequence[float], us: Mapping[str, float]) -> float:
    """Return the microseconds of an image, without those of a launch.

    Args:
        row: of the plan.
        us: by name, what the model says of a plain image and of PARTS.
    """
    columns, plain = SPEC.plan_columns, us[PLAIN]
    area = row[columns.index("erase_height")] * row[columns.index("erase_width")]
    total = plain - LAUNCH_US + area / ERASED_SIDE**2 * (us[ERASED] - plain)
    for column in range(columns.index("op_0"), len(columns), 2):
        operation = int(row[column])
        if operation >= 0 and RAND_AUGMENT_OPS[operation] in STRENGTHS:
            total += us[part_of(RAND_AUGMENT_OPS[operation])] - plain
    return total


def finished(times: Sequence[float], multiprocessors: int) -> float:
    """Return when the last block ends. Blocks start in order, each on the multiprocessor that is free first."""
    free = [0.0] * multiprocessors
    for time in times:
        heapq.heapreplace(free, free[0] + time)
    return max(free)


def batch_row(name: str, gpu: Gpu, us: Mapping[str, float]) -> dict[str, object]:
    """Return a batch's line of the CSV.

    Raises:
        KeyError: `us` lacks a plain image, or one of PARTS.
        RuntimeError: the GPU's shared memory does not hold an image.
    """
    with planned_for(SUBJECTS[PLAIN], gpu.multiprocessors, gpu.block_smem) as case:
        if case.launches[-1].smem_bytes == 0:
            raise RuntimeError("images lie in global memory: their blocks share a multiprocessor, not modelled")
    batch = BATCHES[name]
    times = [image_us(row, us) for row in drawn_plan(batch).tolist()]
    is_sorted = batch > gpu.multiprocessors
    last = finished(sorted(times, reverse=True) if is_sorted else times, gpu.multiprocessors)
    mean, slowest = sum(times) / batch, max(times)
    share = mean * batch / gpu.multiprocessors / last
    num_bytes = bench_augment.Source(batch, torch.device("cpu"), torch.bfloat16).num_bytes()
    return {
        "op": name, "provider": "model", "mode": "predicted", "dtype": "bfloat16",
        "shape": f"32->224 B={batch}, the recipe's views", "arch": f"sm_{gpu.arch}",
        "predicted_us": last + LAUNCH_US + is_sorted * us[ORDER],
        "bound": "images" if share > 0.8 else f"slowest image ({share:.0%} busy)",
        "floor_us": num_bytes / gpu.bandwidth * 1e6, "num_bytes": num_bytes, "blocks": batch, "blocks_at_once": 1,
        "roles": f"{mean:.1f} us an image, {slowest:.1f} the slowest",
    }  # fmt: skip
