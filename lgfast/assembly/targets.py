"""Choose how a teacher gives its targets: live, from stored maps (the paper's offline mode), or from cached views."""

from __future__ import annotations

from pathlib import Path

from lgfast.assembly.teachers import cache_folder
from lgfast.config import Config
from lgfast.data.batch import BatchStream
from lgfast.data.epoch_loader import EpochLoader
from lgfast.guidance.cached import CachedTeacher
from lgfast.guidance.offline import OfflineTeacher, stored_rows
from lgfast.guidance.teacher import TargetSource, Teacher
from lgfast.step.precision import COMPUTE_DTYPE


def target_source(
    config: Config, teacher: Teacher | None, loader: EpochLoader
) -> tuple[TargetSource | None, BatchStream]:
    """Return the source of a run's targets, and the batches to train on, which carry what the source needs.

    Args:
        teacher: the run's teacher; None where it has none.
        loader: the loader of training batches, to which stored outputs belong.
    """
    if teacher is None or config.teacher.targets == "live":
        return teacher, loader
    folder = cache_folder(config) / "targets"
    if config.teacher.targets == "cached":
        cached = CachedTeacher(teacher, loader, folder)
        return cached, cached.batches
    offline = offline_teacher(config, teacher, loader, folder)
    return offline, offline.batches


def offline_teacher(config: Config, teacher: Teacher, loader: EpochLoader, folder: Path) -> OfflineTeacher:
    if not hasattr(loader.image_set, "sizes"):
        raise ValueError(
            f"teacher.targets: offline reads decoded images; use data.loader=resident or timm, got {config.data.loader}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    dtype = COMPUTE_DTYPE[config.precision]
    return OfflineTeacher(*stored_rows(teacher, loader.image_set, config.augment, dtype, folder, loader.device), loader)
