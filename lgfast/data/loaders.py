"""Training loaders by kind."""

import torch

from lgfast.data.dali_loader import DaliLoader
from lgfast.data.epoch_loader import EpochLoader
from lgfast.data.file_set import FileSet
from lgfast.data.image_set import ImageSet
from lgfast.data.resident_loader import ResidentLoader
from lgfast.data.timm_loader import TimmLoader
from lgfast.spec.augment import AugmentSpec

# kind -> EpochLoader class
TRAIN_LOADERS = {
    "resident": ResidentLoader,
    "dali": DaliLoader,
    "timm": TimmLoader,
}


def build_train_loader(
    kind: str,
    image_set: ImageSet | FileSet,
    spec: AugmentSpec,
    batch_size: int,
    seed: int = 0,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    num_views: int = 0,
    balanced: bool = False,
) -> EpochLoader:
    """A training loader of the given kind; all kinds give the same batches. Arguments as `EpochLoader`.

    "dali" reads a FileSet (`load_files`); the others an ImageSet (`load_dataset`).
    """
    if kind not in TRAIN_LOADERS:
        raise ValueError(f"loader: must be one of {', '.join(TRAIN_LOADERS)}, got {kind!r}")
    return TRAIN_LOADERS[kind](
        image_set,
        spec,
        batch_size=batch_size,
        seed=seed,
        workers=workers,
        rank=rank,
        world=world,
        device=device,
        dtype=dtype,
        num_views=num_views,
        balanced=balanced,
    )
