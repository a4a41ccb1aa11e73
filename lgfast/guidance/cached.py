"""A teacher whose outputs for recurring views are computed once and then read. Exact, not an approximation."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from lgfast.data.batch import Batch
from lgfast.data.epoch_loader import EpochLoader
from lgfast.guidance.rows import RowLayout, allocate_rows, read_host_rows
from lgfast.guidance.teacher import Teacher, TeacherOutputs, TeacherTargets


class CachedTeacher:
    """Stands in for a teacher with running statistics, on a loader whose views recur.

    The outputs of a view are computed for all images when an epoch first shows it, in batches of the loader's size. So
    a resumed run finds what it needs, and a step only reads.

    Args:
        teacher: computes them; its outputs for an image must not depend on the other images.
        loader: of the run; `num_views` of each image recur. It brings rows that the device cannot hold.
        folder: for a file, where they fit nowhere else.
    """

    def __init__(self, teacher: Teacher, loader: EpochLoader, folder: Path) -> None:
        self.teacher, self.loader, self.folder = teacher, loader, folder
        self.device = loader.device
        self.num_images = len(loader.image_set)
        self.layout: RowLayout | None = None
        self.rows: Tensor | None = None  # [num_views * num_images, F], view after view
        self.first = torch.zeros((), dtype=torch.int64, device=self.device)  # row of image 0 in the current view
        self._filled: set[int] = set()

    def begin_epoch(self, epoch: int) -> None:
        """Turn to the epoch's view; compute its outputs if this is the first time."""
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
            outputs = self.teacher.outputs(batch.teacher_images)
            packed = self.make_room(outputs).pack(outputs)
            places = view * self.num_images + batch.indices
            self.rows.index_copy_(0, places.to(self.rows.device), packed.to(self.rows.device))

    def make_room(self, outputs: TeacherOutputs) -> RowLayout:
        """Allocate the rows when the first outputs show what they hold."""
        if self.rows is None:
            self.layout = RowLayout.of(outputs)
            num_rows = self.loader.num_views * self.num_images
            dtype = self.layout.pack(outputs).dtype
            self.rows = allocate_rows(num_rows, self.layout.num_values, dtype, self.device, self.folder)
            if self.rows.device.type != self.device.type:
                self.loader.read_rows = self.read_rows
        return self.layout

    def read_rows(self, indices: Tensor, view: int) -> Tensor:
        """What the loader adds to a batch where the rows lie in host memory."""
        return read_host_rows(self.rows, view * self.num_images + indices, self.device)

    def start(self, batch: Batch) -> TeacherTargets:
        """The outputs for the views of a batch."""
        rows = batch.teacher_rows
        if rows is None:
            rows = self.rows.index_select(0, batch.indices + self.first)
        return TeacherTargets(self.layout.unpack(rows))

    def channels(self, image_size: int) -> list[int]:
        """Width of each chosen stage."""
        return self.teacher.channels(image_size)
