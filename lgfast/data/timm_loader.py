"""The `timm` loader: Pillow and timm's own operations in worker processes. The oracle and the baseline."""

import signal
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lgfast.data.batch import Batch
from lgfast.data.epoch_loader import EpochLoader
from lgfast.data.image_set import ImageSet
from lgfast.data.pillow_augment import augment_image
from lgfast.ops.reference.augment_plan import augment_plan, eval_plan
from lgfast.spec.augment import AugmentSpec


class Task(NamedTuple):
    """One batch to prepare."""

    indices: Tensor  # int64 [B]
    epoch: int | None  # None: the evaluation view
    spec: AugmentSpec


class PillowViews(Dataset):
    """`views[task]` is the batch of a task; the same in every process."""

    def __init__(self, image_set: ImageSet, seed: int, dtype: torch.dtype) -> None:
        self.image_set, self.seed, self.dtype = image_set, seed, dtype

    def __getitem__(self, task: Task) -> Batch:
        images, indices, spec = self.image_set, task.indices, task.spec
        plan = self.draw(images.sizes[indices], task)
        pairs = [
            augment_image(images.image(index), row, spec) for index, row in zip(indices.tolist(), plan, strict=True)
        ]
        views, teacher_views = zip(*pairs, strict=True)
        teacher_images = torch.stack(teacher_views).to(self.dtype) if spec.teacher_size else None
        return Batch(torch.stack(views).to(self.dtype), teacher_images, images.labels[indices], indices)

    def draw(self, sizes: Tensor, task: Task) -> Tensor:
        if task.epoch is None:
            return eval_plan(task.spec, sizes)
        return augment_plan(task.spec, sizes, task.indices, torch.tensor([self.seed, task.epoch]))


class WorkerPool:
    """Runs tasks in `workers` processes that live as long as the pool (0: in this process); results in task order."""

    def __init__(self, views: PillowViews, workers: int, device: torch.device) -> None:
        self.views, self.device = views, device
        self.current: list[Task] = []  # what the next iteration of `data_loader` works on
        self.data_loader = start_workers(views, self.current, workers, device) if workers > 0 else None

    def run(self, tasks: Sequence[Task]) -> Iterator[Batch]:
        self.current[:] = tasks
        batches = map(self.views.__getitem__, tasks) if self.data_loader is None else self.data_loader
        for batch in batches:
            yield batch.to(self.device)


def start_workers(views: PillowViews, tasks: list[Task], workers: int, device: torch.device) -> DataLoader:
    """Persistent worker processes; every iteration works on what `tasks` then holds."""
    return DataLoader(
        views,
        batch_size=None,
        sampler=tasks,
        num_workers=workers,
        worker_init_fn=leave_interrupts_to_the_parent,
        pin_memory=device.type == "cuda",
        persistent_workers=True,
        generator=torch.Generator(),  # its own, so that making an iterator does not advance the global one
        multiprocessing_context="fork" if sys.platform == "linux" else None,  # shares the mapped pixels
    )


def leave_interrupts_to_the_parent(worker: int) -> None:
    """Ctrl-C reaches the whole process group; the trainer decides when to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class TimmLoader(EpochLoader[ImageSet]):
    """Training batches from Pillow workers; arguments as `EpochLoader`, plus the number of worker processes."""

    def __init__(self, image_set: ImageSet, spec: AugmentSpec, *, workers: int = 0, **kwargs) -> None:
        super().__init__(image_set, spec, **kwargs)
        self.pool = WorkerPool(PillowViews(image_set, self.seed, self.dtype), workers, self.device)

    def views(self, steps: Tensor, epoch: int) -> Iterator[Batch]:
        return self.pool.run([Task(indices, epoch, self.spec) for indices in steps])
