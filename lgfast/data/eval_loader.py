"""Evaluation batches: every image once, squashed to the square by Pillow's bilinear filter and normalised."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from lgfast.data.batch import Batch
from lgfast.data.image_set import ImageSet
from lgfast.data.timm_loader import PillowViews, Task, WorkerPool
from lgfast.ops.augment_spec import AugmentSpec


class EvalLoader:
    """Iterates over all images in order; the last batch may be smaller. Rank r gets images r, r + world, ...

    Args:
        image_set: the images.
        spec: of the training views; its size and normalisation are used.
        batch_size: images per batch of one rank.
        workers: processes that prepare images; 0: this one.
        rank, world: this process and the number of processes.
        device: where batches are delivered.
        dtype: of the images.
    """

    def __init__(
        self,
        image_set: ImageSet,
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
        self.batch_size, self.tasks = batch_size, [Task(part, None) for part in indices.split(batch_size)]
        views = PillowViews(image_set, replace(spec.for_evaluation(), teacher_size=0), 0, dtype)
        self.pool = WorkerPool(views, workers, torch.device(device))

    def __len__(self) -> int:
        return len(self.tasks)

    def __iter__(self) -> Iterator[Batch]:
        return self.pool.run(self.tasks)
