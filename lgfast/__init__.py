"""lgfast: fast locality-guidance training of vision transformers on tiny datasets."""

try:
    import torchvision as _torchvision  # noqa: F401  timm needs it
except RuntimeError as error:  # it was built for another torch
    import torch

    from lgfast.doctor.environment import torchvision_fix

    fix = torchvision_fix(torch.version.cuda)
    raise ImportError(f"torchvision does not fit torch ({error}); run: {fix}") from error

from lgfast import models, ops  # importing models registers them in timm
from lgfast.class_swap import FuseReport
from lgfast.fusion import fuse, unfuse
from lgfast.layer_fusion import fuse_layers, unfuse_layers
from lgfast.version import __version__

__all__ = ["FuseReport", "__version__", "fuse", "fuse_layers", "models", "ops", "unfuse", "unfuse_layers"]
