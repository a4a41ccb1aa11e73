"""The `resident` loader: the decoded images stay in memory, and one native launch makes a batch of views."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lgfast.data.ahead import ahead
from lgfast.data.any_images import AnyImages
from lgfast.data.batch import Batch
from lgfast.data.epoch_loader import EpochLoader
from lgfast.data.image_set import ImageSet
from lgfast.data.resident_images import ResidentImages, native_device
from lgfast.ops.augment import check_source_sizes
from lgfast.spec.augment import AugmentSpec
from lgfast.spec.pixels import RGB


class ResidentLoader(EpochLoader[ImageSet]):
    """Training batches from images in memory; arguments as `EpochLoader`. `workers` is not used: threads work.

    For images of 8-bit RGB the order of the epoch and the plan of every view are drawn on the device. PyTorch makes the
    views of other images.
    Raises:
        ValueError: on a GPU, an image is too large for `augment`.
    """

    def __init__(
        self,
        image_set: ImageSet,
        spec: AugmentSpec,
        *,
        workers: int = 0,
        limit_bytes: int | None = None,
        **kwargs,
    ) -> None:
        super().__init__(image_set, spec, **kwargs)
        self.images: ResidentImages | AnyImages
        if image_set.format != RGB:
            self.images = AnyImages(image_set, self.device, limit_bytes)
            return
        device = native_device(self.device)
        check_source_sizes(spec, image_set.sizes, device)
        self.images = ResidentImages(image_set, device, limit_bytes)

    @property
    def index_device(self) -> torch.device:
        return self.images.index_device

    def views(self, steps: Tensor, epoch: int) -> Iterator[Batch]:
        device = self.images.device
        counter = torch.tensor([self.seed, epoch], device=self.images.plan_device)
        batches = ahead(steps, lambda indices: self.images.make(indices, counter, self.spec, self.dtype), device)
        return (batch.to(self.device) for batch in batches)
