"""The kernels that the model predicts, at the shapes of a DeiT-Ti step: their launches, sources and blocks to run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch

from benchmarks import bench_augment
from benchmarks.kernels.trials import DEIT_TINY_SIZES
from benchmarks.model import launches
from benchmarks.model.launches import Case, Launch
from lgfast.ops import augment_plan

ROTATE, SHEAR = 3, 11  # indices in RAND_AUGMENT_OPS


@dataclass(frozen=True)
class Subject:
    """A kernel at a shape.

    Attributes:
        make: makes its launches.
        sources: of its kernels, under csrc/.
        shape: in words, for the CSV.
        blocks: launch -> the blocks to run, each with the number of blocks that it stands for.
        options: of the compiler.
        disabled: value of LGFAST_DISABLE while the launches are planned.
        make_last: (case, blocks of the launch) -> names of the tensors that lie in a cache by then; prepares memory so
            that the block that runs next is the last to end. None: the last block does nothing more than others.
    """

    make: Callable[[], Case]
    sources: tuple[str, ...]
    shape: str
    blocks: Callable[[Launch], list[tuple[int, float]]] = lambda launch: spread(launch, 1)
    options: list[str] = field(default_factory=list)
    disabled: str = ""
    make_last: Callable[[Case, int], list[str]] | None = None


def spread(launch: Launch, count: int) -> list[tuple[int, float]]:
    """Return `count` blocks, evenly apart, each with the number of blocks that it stands for."""
    count = min(count, launch.blocks)
    return [(int((k + 0.5) * launch.blocks / count), launch.blocks / count) for k in range(count)]


def of_pairs(launch: Launch) -> list[tuple[int, float]]:
    """Return the blocks of one image of feature_mse, each with the number of images.

    An image has a block for each pair, slab of channels and part of the rows; the grid is images by blocks of an image.
    """
    images, units, _ = launch.grid
    return spread(launch, 1) if units == 1 else [(unit * images + images // 2, images) for unit in range(units)]


def all_others_ended(case: Case, blocks: int) -> list[str]:
    """Every other block of feature_mse has written its part of the loss, and counted itself."""
    case.tensors["counter"].fill_(blocks - 1)
    return ["partials"]


def one_view(*operations: tuple[int, float], erased_side: int = 0) -> Case:
    """Return augment of one image of CIFAR's size: up to two operations, drawn crop and flip, a square erased."""
    source = bench_augment.Source(1, torch.device("cpu"), torch.bfloat16)
    plan = augment_plan(bench_augment.SPEC, source.sizes, source.indices, source.counter)
    columns = bench_augment.SPEC.plan_columns
    for name, value in zip(("top", "left", "height", "width"), (10, 11, erased_side, erased_side), strict=True):
        plan[0, columns.index(f"erase_{name}")] = value
    for slot in range(2):
        code, argument = operations[slot] if slot < len(operations) else (-1, 0.0)
        plan[0, len(columns) - 4 + 2 * slot], plan[0, len(columns) - 3 + 2 * slot] = code, argument
    return launches.views(plan, torch.from_numpy(source.images))


ATTENTION = "short_attention/instances/{}_bf16_d64.cu"
AUGMENT = {
    "sources": ("augment/instances/augment_bf16.cu", "augment/augment.cu"),
    "options": ["--fmad=false"],
    "blocks": lambda launch: [(0, launch.blocks)],  # of an image that is divided, the middle; else the image
}
SUBJECTS: dict[str, Subject] = {
    "short_attention_fwd": Subject(
        partial(launches.attention, 256),
        (ATTENTION.format("fwd"),),
        "deit_tiny B=256",
        disabled="short_attention_fwd_wgmma",
    ),
    "short_attention_fwd_wgmma": Subject(
        partial(launches.attention, 256), (ATTENTION.format("fwd"),), "deit_tiny B=256"
    ),
    "short_attention_bwd_resident": Subject(
        partial(launches.attention, 256, is_backward=True),
        (ATTENTION.format("bwd"),),
        "deit_tiny B=256",
        disabled="short_attention_bwd_wgmma",
    ),
    "short_attention_bwd_wgmma": Subject(
        partial(launches.attention, 256, is_backward=True), (ATTENTION.format("bwd"),), "deit_tiny B=256"
    ),
    "short_attention_bwd_streamed": Subject(
        partial(launches.attention, 256, is_backward=True),
        (ATTENTION.format("bwd"),),
        "deit_tiny B=256",
        disabled="short_attention_bwd_resident,short_attention_bwd_wgmma",
    ),
    "feature_mse": Subject(
        partial(launches.guidance, 256),
        ("feature_mse/feature_mse.cu",),
        "deit_tiny B=256",
        of_pairs,
        make_last=all_others_ended,
    ),
    "feature_mse_bwd": Subject(
        partial(launches.guidance_backward, 256), ("feature_mse/feature_mse.cu",), "deit_tiny B=256"
    ),
    "augment_plain": Subject(one_view, shape="32->224, one image", **AUGMENT),
    "augment_rotated": Subject(
        partial(one_view, (ROTATE, 17.0), (SHEAR, 0.2)), shape="32->224, one image, rotated and sheared", **AUGMENT
    ),
    "flat_adamw": Subject(
        partial(launches.adamw, DEIT_TINY_SIZES),
        ("flat_adamw/flat_adamw.cu",),
        "deit_tiny (5.54 M)",
        lambda launch: spread(launch, 5),
    ),
    "add_layer_norm_fwd": Subject(
        partial(launches.layer_norm, 256), ("add_layer_norm/add_layer_norm.cu",), "deit_tiny B=256"
    ),
    "add_layer_norm_bwd": Subject(
        partial(launches.layer_norm, 256, is_backward=True), ("add_layer_norm/add_layer_norm.cu",), "deit_tiny B=256"
    ),
    "bias_gelu_fwd": Subject(partial(launches.gelu, 256), ("bias_gelu/bias_gelu.cu",), "deit_tiny B=256"),
    "bias_gelu_bwd": Subject(
        partial(launches.gelu, 256, is_backward=True), ("bias_gelu/bias_gelu.cu",), "deit_tiny B=256"
    ),
}


@contextmanager
def planned_for(subject: Subject, multiprocessors: int, smem_bytes: int, has_wgmma: bool = False) -> Iterator[Case]:
    """Give the launches of a subject on a GPU with so many multiprocessors and bytes of shared memory a block."""
    before = os.environ.get("LGFAST_DISABLE")
    os.environ["LGFAST_DISABLE"] = subject.disabled
    try:
        launches.use_gpu(multiprocessors, smem_bytes, has_wgmma)
        yield subject.make()
    finally:
        os.environ.pop("LGFAST_DISABLE") if before is None else os.environ.update(LGFAST_DISABLE=before)
