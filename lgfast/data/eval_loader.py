"""Evaluation batches: every image once, squashed to the square by Pillow's bilinear filter and normalised."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from lgfast import _extension
from lgfast.data.ahead import ahead
from lgfast.data.any_images import AnyImages
from lgfast.data.batch import Batch
from lgfast.data.file_images import FileImages
from lgfast.data.file_set import FileSet
from lgfast.data.image_set import ImageSet
from lgfast.data.resident_images import ResidentImages, native_device
from lgfast.data.timm_loader import PillowViews, Task, WorkerPool
from lgfast.ops.augment import check_source_sizes
from lgfast.spec.augment import AugmentSpec
from lgfast.spec.pixels import RGB


class EvalLoader:
    """Iterates over all images in order; the last batch may be smaller. Rank r gets images r, r + world, ...

    Args:
        image_set: the images, decoded or as files.
        spec: of the training views; its size and normalisation are used.
        batch_size: images per batch of one rank.
        workers: processes that prepare images where there is no native code; 0: this one.
        rank, world: this process and the number of processes.
        device: where batches are delivered.
        dtype: of the images.
    Raises:
        ValueError: batch_size is below 1; on a GPU, an image is too large for `augment`.
    """

    def __init__(
        self,
        image_set: ImageSet | FileSet,
        spec: AugmentSpec,
        *,
        batch_size: int = 200,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size: must be at least 1, got {batch_size}")
        indices = torch.arange(rank, len(image_set), world)
        self.batch_size = batch_size
        self.spec, self.dtype = replace(spec.for_evaluation(), teacher_size=0), dtype
        self.device = torch.device(device)
        self.pool: WorkerPool | None = None
        self.images: FileImages | ResidentImages | AnyImages
        if isinstance(image_set, ImageSet) and image_set.format != RGB:
            self.images = AnyImages(image_set, self.device)
        elif isinstance(image_set, FileSet):
            self.images = FileImages(image_set, native_device(self.device))
        elif _extension.has_native():
            device = native_device(self.device)
            check_source_sizes(self.spec, image_set.sizes, device)
            self.images = ResidentImages(image_set, device)
        else:
            self.pool = WorkerPool(PillowViews(image_set, 0, dtype), workers, self.device)
        index_device = "cpu" if self.pool else self.images.index_device
        self.parts = indices.to(index_device).split(batch_size)

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[Batch]:
        if self.pool is not None:
            return self.pool.run([Task(part, None, self.spec) for part in self.parts])
        return self.make_views()

    def make_views(self) -> Iterator[Batch]:
        images = self.images
        for batch in ahead(self.parts, lambda part: images.make(part, None, self.spec, self.dtype), images.device):
            yield batch.to(self.device)
