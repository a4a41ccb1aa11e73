"""Keep images of any channels and depth on the CPU or GPU on which PyTorch makes their views."""

import torch
from torch import Tensor

from lgfast.data.batch import Batch
from lgfast.data.image_set import ImageSet
from lgfast.data.resident_images import device_pixels
from lgfast.data.tensor_views import make_views
from lgfast.ops.augment import augment_plan, eval_plan
from lgfast.spec.augment import AugmentSpec


class AnyImages:
    """Makes batches of an ImageSet of any format. Views have the plans that 8-bit RGB images of their size would get.

    Args: as of `ResidentImages`.
    """

    index_device = plan_device = torch.device("cpu")  # the host reads plans, to know which pixels to take

    def __init__(self, image_set: ImageSet, device: torch.device, limit_bytes: int | None = None) -> None:
        self.image_set, self.device = image_set, device
        stored = device_pixels(image_set.pixels, device, limit_bytes)
        self.stored = stored  # keeps the device's copy
        self.pixels = image_set.pixels if stored is None else stored.pixels

    def make(self, indices: Tensor, counter: Tensor | None, spec: AugmentSpec, dtype: torch.dtype) -> Batch:
        """Make a batch as `ResidentImages.make` does; `indices` (B,) and `counter` (2,) are on the CPU."""
        images, sizes = self.image_set, self.image_set.sizes[indices]
        plan = eval_plan(spec, sizes) if counter is None else augment_plan(spec, sizes, indices, counter)
        pictures = [self.picture(index) for index in indices.tolist()]
        views, teacher_views = make_views(pictures, plan, spec)
        labels, on_device = images.labels[indices].to(self.device), indices.to(self.device)
        return Batch(views.to(dtype), None if teacher_views is None else teacher_views.to(dtype), labels, on_device)

    def picture(self, index: int) -> Tensor:
        """Return image `index` [h, w, C] on the device; uint16 as int32, since PyTorch computes little with uint16."""
        format, (height, width) = self.image_set.format, self.image_set.sizes[index].tolist()
        start = int(self.image_set.offsets[index])
        content = self.pixels[start : start + height * width * format.num_bytes].to(self.device, non_blocking=True)
        if format.dtype == "uint16":
            content = content.view(torch.int16).to(torch.int32) & 0xFFFF
        elif format.dtype == "float32":
            content = content.view(torch.float32)
        return content.view(height, width, format.channels)
