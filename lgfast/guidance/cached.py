"""Compute a teacher's outputs for recurring views once, then read them. This is exact, not an approximation."""

from __future__ import annotations

from pathlib import Path

import torch

from lgfast.data.batch import Batch
from lgfast.data.epoch_loader import EpochLoader
from lgfast.guidance.rows import RowLayout, allocate_rows, bring_rows, release_rows
from lgfast.guidance.teacher import TargetSource, Teacher, TeacherTargets


class CachedTeacher(TargetSource):
    """Replaces a teacher with running statistics, on a loader whose views recur.

    When an epoch first shows a view, the outputs of all images are computed in batches of the loader's size. So a
    resumed run finds what it needs, and a step only reads.

    Args:
        teacher: computes them; its outputs for an image must not depend on the other images.
        loader: the run's loader; `num_views` of each image recur.
        folder: the folder of a file, which is made where the outputs fit nowhere else.
    Attributes:
        batches: what the run trains on: the loader, whose batches bring rows that the device cannot hold.
    """

    def __init__(self, teacher: Teacher, loader: EpochLoader, folder: Path) -> None:
        self.teacher, self.loader, self.num_images = teacher, loader, len(loader.image_set)
        outputs = teacher.example(loader.spec.teacher_size)
        self.layout, dtype = RowLayout.of(outputs), RowLayout.of(outputs).pack(outputs).dtype
        num_rows = loader.num_views * self.num_images
        # [num_views * num_images, F], view after view
        self.rows = allocate_rows(num_rows, self.layout.num_values, dtype, loader.device, folder)
        self.batches = bring_rows(loader, self.rows, self.num_images)
        self.first = torch.zeros((), dtype=torch.int64, device=loader.device)  # row of image 0 in the current view
        self._filled: set[int] = set()

    def begin_epoch(self, epoch: int) -> None:
        """Move to the epoch's view; compute its outputs if this is the first time."""
        view = epoch % self.loader.num_views
        self.first.fill_(view * self.num_images)
        if view not in self._filled:
            self.fill(view)
            self._filled.add(view)

    @torch.no_grad()
    def fill(self, view: int) -> None:
        """Compute a view's outputs, every batch of the same size as in training."""
        size = self.loader.batch_size // self.loader.world
        order = torch.arange(-(-self.num_images // size) * size) % self.num_images
        for batch in self.loader.views(order.view(-1, size).to(self.loader.index_device), view):
            outputs = self.teacher.outputs(batch.need_teacher_images())
            packed = self.layout.pack(outputs)
            numbers = view * self.num_images + batch.indices
            self.rows.index_copy_(0, numbers.to(self.rows.device), packed.to(self.rows.device))

    def start(self, batch: Batch) -> TeacherTargets:
        """Return the outputs for the views of a batch."""
        rows = batch.teacher_rows
        if rows is None:
            rows = self.rows.index_select(0, batch.indices + self.first)
        return TeacherTargets(self.layout.unpack(rows))

    def release(self) -> None:
        self.teacher.release()
        self.rows = self.rows.new_empty(0)
        release_rows(self.batches)

    def channels(self, image_size: int) -> list[int]:
        """Return the width of each chosen stage."""
        return self.teacher.channels(image_size)
