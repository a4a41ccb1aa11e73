"""Students, teachers and the taps between them; importing this registers lgfast's models in timm."""

try:
    import torchvision as _torchvision  # noqa: F401  timm needs it
except RuntimeError as error:  # it was built for another torch
    import torch

    from lgfast.runtime.environment import torchvision_fix

    fix = torchvision_fix(torch.version.cuda)
    raise ImportError(f"torchvision does not fit torch ({error}); run: {fix}") from error

from lgfast.models.factory import create_model
from lgfast.models.stages import default_stages, stage_shapes, teacher_stages
from lgfast.models.taps import FeatureTaps, count_blocks, default_layers, tap_shapes

__all__ = [
    "FeatureTaps",
    "count_blocks",
    "create_model",
    "default_layers",
    "default_stages",
    "stage_shapes",
    "tap_shapes",
    "teacher_stages",
]
