"""Keep decoded images where `augment` reads them: on the device, or in host memory, from which batches are sent."""

from dataclasses import dataclass
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from lgfast import _extension
from lgfast.data.batch import Batch
from lgfast.data.image_set import ImageSet, image_offsets
from lgfast.ops.augment import augment, augment_plan, eval_plan
from lgfast.spec.augment import AugmentSpec

LARGEST_PART = 0.5  # of the free device memory that pixels may take


@dataclass(frozen=True, eq=False)
class DevicePixels:
    """The pixels of a decoded data set on a device; its splits share one copy."""

    source: Tensor  # uint8 [num_bytes], on CPU
    pixels: Tensor  # uint8 [num_bytes]


# (id of the source, device) -> what is in use there; a source lives as long as its entry
_in_use: WeakValueDictionary[tuple[int, torch.device], DevicePixels] = WeakValueDictionary()


def device_pixels(source: Tensor, device: torch.device, limit_bytes: int | None = None) -> DevicePixels | None:
    """Return the pixels on the device, where at most one copy is; None where they do not fit.

    Args:
        limit_bytes: most bytes to keep on the device; None: half of a GPU's free memory, and no limit on CPU, where
            nothing is copied.
    """
    key = (id(source), device)
    found = _in_use.get(key)
    if limit_bytes is None and found is None and device.type == "cuda":
        limit_bytes = int(LARGEST_PART * torch.cuda.mem_get_info(device)[0])
    if limit_bytes is not None and source.numel() > limit_bytes:
        return None
    if found is None:
        found = _in_use[key] = DevicePixels(source, source.to(device))
    return found


class ResidentImages:
    """An ImageSet where `augment` can read it: on the device if it fits there, else in host memory, sent per batch.

    Args:
        image_set: the images.
        device: where views are made.
        limit_bytes: as `device_pixels`.
    """

    def __init__(self, image_set: ImageSet, device: torch.device, limit_bytes: int | None = None) -> None:
        self.image_set, self.device = image_set, device
        self.stored = device_pixels(image_set.pixels, device, limit_bytes)
        self.sizes, self.labels = image_set.sizes.to(device), image_set.labels.to(device)
        if self.is_resident:
            self.offsets = image_set.offsets.to(device)

    @property
    def is_resident(self) -> bool:
        """Whether the pixels stay on the device."""
        return self.stored is not None

    @property
    def plan_device(self) -> torch.device:
        """The device on which `make` takes the counter."""
        return self.device

    @property
    def index_device(self) -> torch.device:
        """The device on which `make` takes the indices of a batch."""
        return self.device if self.is_resident else torch.device("cpu")

    def make(self, indices: Tensor, counter: Tensor | None, spec: AugmentSpec, dtype: torch.dtype) -> Batch:
        """Make the batch of `indices` (B,), on `index_device`; counter (2,) int64 on the device, None: evaluation
        views."""
        on_device = indices.to(self.device, non_blocking=True)
        sizes = self.sizes[on_device]
        plan = eval_plan(spec, sizes) if counter is None else augment_plan(spec, sizes, on_device, counter)
        if self.stored is None:
            pixels, offsets = self.send(indices)
            rows = torch.arange(len(indices), device=self.device)
            views = augment(pixels, offsets, sizes, rows, plan, spec, dtype)
        else:
            views = augment(self.stored.pixels, self.offsets, self.sizes, on_device, plan, spec, dtype)
        return Batch(*views, self.labels[on_device], on_device)

    def send(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Send the pixels of some images to the device, back to back, with their offsets; the copies are
        asynchronous."""
        images = self.image_set
        num_bytes = images.sizes[indices].long().prod(dim=1) * 3
        spans = zip(images.offsets[indices].tolist(), num_bytes.tolist(), strict=True)
        pixels = torch.cat([images.pixels[start : start + count] for start, count in spans])
        offsets = image_offsets(images.sizes[indices])
        if self.device.type == "cuda":
            pixels, offsets = pixels.pin_memory(), offsets.pin_memory()
        return pixels.to(self.device, non_blocking=True), offsets.to(self.device, non_blocking=True)


def native_device(device: torch.device) -> torch.device:
    """Return the device, or the CPU where the kernels that make views cannot run on it or are switched off."""
    if device.type != "cuda":
        return device
    lacks = (_extension.missing_kernel_reason(operation, device) for operation in ("augment", "augment_plan"))
    return torch.device("cpu") if any(lacks) else device
