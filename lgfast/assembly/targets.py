"""How a run's teacher gives its targets: live, from stored maps (the paper's offline mode), or from cached views."""

from __future__ import annotations

from lgfast.assembly.teachers import cache_folder
from lgfast.config import Config
from lgfast.data.epoch_loader import EpochLoader
from lgfast.guidance.cached import CachedTeacher
from lgfast.guidance.offline import OfflineTeacher, stored_rows
from lgfast.guidance.teacher import TargetSource, Teacher
from lgfast.step.precision import COMPUTE_DTYPE


def target_source(config: Config, teacher: Teacher | None, loader: EpochLoader) -> TargetSource | None:
    """What a run's step asks for targets.

    Args:
        teacher: of the run; None where it has none.
        loader: of the training batches, which the stored outputs belong to.
    """
    if teacher is None or config.teacher.targets == "live":
        return teacher
    folder = cache_folder(config) / "targets"
    if config.teacher.targets == "cached":
        return CachedTeacher(teacher, loader, folder)
    if not hasattr(loader.image_set, "sizes"):
        raise ValueError(
            f"teacher.targets: offline reads decoded images; use data.loader=resident or timm, got {config.data.loader}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    dtype = COMPUTE_DTYPE[config.precision]
    return OfflineTeacher(*stored_rows(teacher, loader.image_set, config.augment, dtype, folder, loader.device), loader)
