"""Train several runs in one process, as lanes of one loop: they share each augmented batch and each teacher pass.

Each run has its own optimizer, schedule, meters, files and random numbers, so that it ends with the same bits as if it
had run alone with the same views (on CPU; tested). What runs may differ in is `OWN_KEYS`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lgfast.assembly.device import resolve_device, resolve_precision
from lgfast.assembly.images import load_splits, settle
from lgfast.assembly.lanes import Shared, build_lane, share
from lgfast.assembly.run import prepare_teacher
from lgfast.assembly.run_folder import run_folder
from lgfast.config import Config, digest, to_dict
from lgfast.records.files import WriteError
from lgfast.runtime.interrupt import InterruptFlag
from lgfast.training.lane import Lane, Status
from lgfast.training.loop import Row, keep_going
from lgfast.training.saving import Progress

# What runs of one group may differ in; everything else shapes the batch or the teacher.
OWN_KEYS = (
    "optim", "guidance.weight", "guidance.stop", "guidance.stop_threshold", "distill", "model.drop_path_rate", "seed",
    "name", "run_dir",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """How a run of a group ended."""

    config: Config
    status: Status
    error: str = ""  # why it failed
    progress: Progress | None = None  # None: it could not begin


def group_key(config: Config) -> str:
    """A key that is equal for runs that can share batches and teacher."""
    tree = to_dict(config)
    tree["data"]["seed"] = config.view_seed
    for key in OWN_KEYS:
        *path, leaf = key.split(".")
        node = tree
        for part in path:
            node = node[part]
        del node[leaf]
    return digest(tree)


def run_group(
    configs: Sequence[Config], interrupt: InterruptFlag, on_epoch: Callable[[Lane, Row], bool] = keep_going
) -> list[Outcome]:
    """Train runs of one `group_key` together. A run that has a checkpoint continues from it.

    Args:
        configs: each with its own `run_dir`.
        on_epoch: as the loop's.
    Returns:
        How they ended, in the same order. The test images are not touched.
    Raises:
        Interrupted: while the images were read, or the teacher, which comes first, was training.
    """
    if len({group_key(config) for config in configs}) != 1:
        raise ValueError(f"a group shares everything but {', '.join(OWN_KEYS)}; these configurations differ in more")
    configs = [resolve_precision(config) for config in configs]
    device = resolve_device(configs[0].device)
    with interrupt.at_once():
        splits = load_splits(configs[0])
    configs = [settle(own, splits) for own in configs]
    config = most_demanding(configs)
    teacher, _ = prepare_teacher(config, splits, device, interrupt)
    with interrupt.at_once():
        shared = share(config, splits, teacher, device, len(configs))
    with contextlib.ExitStack() as folders:
        begun = [begin(config, shared, folders) for config in configs]
        lanes = [lane for lane in begun if isinstance(lane, Lane)]
        if lanes:
            shared.loop(lanes, interrupt, on_epoch).run()
    return [outcome(run) if isinstance(run, Lane) else run for run in begun]


def begin(config: Config, shared: Shared, folders: contextlib.ExitStack) -> Lane | Outcome:
    """Build a run's lane at its newest checkpoint; or say how that failed, so that the other runs go on.

    Args:
        folders: keeps the run's folder for this process.
    """
    try:
        folders.enter_context(run_folder(config, resume=True))
        lane = build_lane(config, shared)
    except WriteError:
        raise
    except ValueError as error:
        return Outcome(config, "failed", str(error))
    with lane.acting():
        lane.resume()
    return lane


def outcome(lane: Lane) -> Outcome:
    error = str(lane.error) if lane.status == "failed" else ""
    return Outcome(lane.config, lane.status, error, lane.progress)


def most_demanding(configs: Sequence[Config]) -> Config:
    """The configuration that asks most of the teacher; it decides whether there is one and whether it gives logits."""
    return max(configs, key=lambda config: (config.distill.mode != "none", config.guidance.weight))
