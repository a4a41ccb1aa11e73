"""How a run's teacher gives its targets: live, from stored maps (the paper's offline mode), or from cached views."""

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
    """What a run's step asks for targets, and the batches to train on, which bring what it needs.

    Args:
        teacher: of the run; None where it has none.
        loader: of the training batches, which the stored outputs belong to.
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
