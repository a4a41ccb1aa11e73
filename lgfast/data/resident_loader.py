"""The `resident` loader: the decoded images stay in memory, and one native launch makes a batch of views."""

import functools
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from lgfast import _extension
from lgfast.data.batch import Batch
from lgfast.data.epoch_loader import EpochLoader
from lgfast.data.image_set import ImageSet, image_offsets
from lgfast.ops.augment import augment, augment_plan, check_source_sizes, eval_plan
from lgfast.ops.augment_spec import AugmentSpec

LARGEST_PART = 0.5  # of the free device memory that pixels may take


class ResidentImages:
    """An ImageSet where `augment` can read it: on the device if it fits there, else in host memory, sent per batch.

    Args:
        image_set: the images.
        device: where views are made.
        limit_bytes: largest size of the pixels to be kept on the device; None: half of a GPU's free memory, and no
            limit on CPU, where nothing is copied.
    """

    def __init__(self, image_set: ImageSet, device: torch.device, limit_bytes: int | None = None) -> None:
        self.image_set, self.device = image_set, device
        if limit_bytes is None:
            limit_bytes = int(LARGEST_PART * torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else None
        self.is_resident = limit_bytes is None or image_set.pixels.numel() <= limit_bytes
        self.sizes, self.labels = image_set.sizes.to(device), image_set.labels.to(device)
        if self.is_resident:
            self.pixels, self.offsets = image_set.pixels.to(device), image_set.offsets.to(device)

    @property
    def index_device(self) -> torch.device:
        """Where the indices of a batch are needed."""
        return self.device if self.is_resident else torch.device("cpu")

    def make(self, indices: Tensor, counter: Tensor | None, spec: AugmentSpec, dtype: torch.dtype) -> Batch:
        """The batch of `indices` (B,), on `index_device`; counter (2,) int64 on the device, None: evaluation views."""
        pixels = offsets = None
        if not self.is_resident:
            pixels, offsets = self.send(indices)
            indices = indices.to(self.device, non_blocking=True)
        sizes = self.sizes[indices]
        plan = eval_plan(spec, sizes) if counter is None else augment_plan(spec, sizes, indices, counter)
        if self.is_resident:
            views = augment(self.pixels, self.offsets, self.sizes, indices, plan, spec, dtype)
        else:
            places = torch.arange(len(indices), device=self.device)
            views = augment(pixels, offsets, sizes, places, plan, spec, dtype)
        return Batch(*views, self.labels[indices], indices)

    def send(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The pixels of some images back to back on the device, and their offsets; the copies are asynchronous."""
        images = self.image_set
        num_bytes = images.sizes[indices].long().prod(dim=1) * 3
        spans = zip(images.offsets[indices].tolist(), num_bytes.tolist(), strict=True)
        pixels = torch.cat([images.pixels[start : start + count] for start, count in spans])
        offsets = image_offsets(images.sizes[indices])
        if self.device.type == "cuda":
            pixels, offsets = pixels.pin_memory(), offsets.pin_memory()
        return pixels.to(self.device, non_blocking=True), offsets.to(self.device, non_blocking=True)


def ahead(steps: Iterable, make, device: torch.device) -> Iterator[Batch]:
    """make(step) for each step; on CUDA one batch ahead, on a stream of its own, while the caller uses the last one.

    The host waits there until the use of the last batch but one is done. Otherwise it would get further ahead of the
    GPU, and every batch that is still to be used takes memory.
    """
    if device.type != "cuda":
        yield from map(make, steps)
        return
    stream = loading_stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    upcoming, used_before = None, None
    try:
        for step in steps:
            with torch.cuda.stream(stream):
                batch, ready = make(step), torch.cuda.Event()
                ready.record(stream)
            if upcoming is not None:
                yield hand_over(*upcoming, device)
                used = torch.cuda.Event(blocking=True)
                used.record(torch.cuda.current_stream(device))
                if used_before is not None:
                    used_before.synchronize()
                used_before = used
            upcoming = batch, ready
        if upcoming is not None:
            yield hand_over(*upcoming, device)
    finally:  # what the batches were made from may be freed now, also where the caller stops early
        torch.cuda.current_stream(device).wait_stream(stream)


@functools.cache
def loading_stream(device: torch.device) -> torch.cuda.Stream:
    """Where the batches of all loaders are made: freed memory is reused only within a stream."""
    return torch.cuda.Stream(device)


def hand_over(batch: Batch, ready: torch.cuda.Event, device: torch.device) -> Batch:
    """Make the current stream wait for the batch, and keep its memory from being reused before that stream is done."""
    current = torch.cuda.current_stream(device)
    current.wait_event(ready)
    for tensor in batch:
        if tensor is not None:
            tensor.record_stream(current)
    return batch


class ResidentLoader(EpochLoader):
    """Training batches from images in memory; arguments as `EpochLoader`. `workers` is not used: threads work.

    The order of the epoch and the plan of every view are drawn on the device.
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
        device = native_device(self.device)
        check_source_sizes(spec, image_set.sizes, device)
        self.images = ResidentImages(image_set, device, limit_bytes)

    @property
    def index_device(self) -> torch.device:
        return self.images.index_device

    def views(self, steps: Tensor, epoch: int) -> Iterator[Batch]:
        device = self.images.device
        counter = torch.tensor([self.seed, epoch], device=device)
        batches = ahead(steps, lambda indices: self.images.make(indices, counter, self.spec, self.dtype), device)
        return (batch.to(self.device) for batch in batches)


def native_device(device: torch.device) -> torch.device:
    """The device, or the CPU where there are no CUDA kernels for it."""
    return device if device.type != "cuda" or _extension.has_cuda_kernels() else torch.device("cpu")
