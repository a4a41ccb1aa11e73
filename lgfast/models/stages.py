"""Stage maps of a teacher: which of timm's feature levels to imitate, and their shapes at an input size."""

from collections.abc import Sequence
from functools import partial

from torch import nn

from lgfast.models.taps import architecture, run_zero_image

StageShape = tuple[int, tuple[int, int]]


def default_stages(model: nn.Module) -> tuple[int, int, int]:
    """First, middle and last feature level; a stem at half resolution does not count if three others remain.

    CIFAR ResNets give (0, 1, 2), timm's four-stage CNNs their stages 1, 3 and 4.
    """
    reductions = [info["reduction"] for info in getattr(model, "feature_info", ())]
    levels = [level for level, reduction in enumerate(reductions) if reduction >= 4]
    if len(levels) < 3:
        levels = list(range(len(reductions)))
    if len(levels) < 3 or not hasattr(model, "forward_intermediates"):
        raise ValueError(
            f"{architecture(model)}: a teacher needs timm's forward_intermediates with at least three feature "
            f"levels, got {len(levels)}"
        )
    return levels[0], levels[len(levels) // 2], levels[-1]


def stage_shapes(model: nn.Module, stages: Sequence[int], image_size: int) -> list[StageShape]:
    """(C, (h, w)) of each stage map at a square input, from one forward of a zero image."""
    forward = partial(model.forward_intermediates, indices=list(stages), intermediates_only=True)
    maps = run_zero_image(model, image_size, forward)
    return [(x.shape[1], (x.shape[2], x.shape[3])) for x in maps]


def teacher_stages(model: nn.Module, image_size: int) -> tuple[tuple[int, int, int], list[StageShape]]:
    """Default stages of a teacher and the shapes of their maps.

    Args:
        model: any timm CNN, as `forward_intermediates(x, indices=stages)` will be called.
        image_size: side of the teacher's square input.
    Returns:
        stage indices, and (C, (h, w)) of each.
    Raises:
        ValueError: fewer than three feature levels, or an input too small for the model.
    """
    stages = default_stages(model)
    return stages, stage_shapes(model, stages, image_size)
