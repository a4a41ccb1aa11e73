"""Share one teacher among several students in one process."""

from __future__ import annotations

import torch

from lgfast.data.batch import Batch
from lgfast.guidance.teacher import TargetSource, TeacherOutputs, TeacherTargets


class SharedTeacher(TargetSource):
    """Runs a teacher once for each batch, and gives its outputs to every student of the process.

    The outputs keep their memory from batch to batch, so that a student's captured step finds them.
    """

    def __init__(self, teacher: TargetSource) -> None:
        self.teacher = teacher
        self._kept: TeacherOutputs | None = None

    def begin_epoch(self, epoch: int) -> None:
        self.teacher.begin_epoch(epoch)

    @torch.no_grad()
    def prepare(self, batch: Batch) -> None:
        """Run the teacher on the batch."""
        outputs = self.teacher.start(batch).wait()
        if self._kept is None:
            self._kept = outputs.each(torch.empty_like)
        for kept, new in zip(self._kept.tensors(), outputs.tensors(), strict=True):
            kept.copy_(new)

    def start(self, batch: Batch) -> TeacherTargets:
        """Return the outputs for the batch, which `prepare` must have seen last."""
        if self._kept is None:
            raise RuntimeError("SharedTeacher: prepare(batch) must come before start(batch)")
        return TeacherTargets(self._kept)

    def release(self) -> None:
        self._kept = None
        self.teacher.release()

    def channels(self, image_size: int) -> list[int]:
        return self.teacher.channels(image_size)
