"""One teacher for several students in one process."""

from __future__ import annotations

import torch

from lgfast.data.batch import Batch
from lgfast.guidance.teacher import TargetSource, TeacherOutputs, TeacherTargets


class SharedTeacher(TargetSource):
    """Says once what a teacher has to say of a batch, for every student that then asks.

    The outputs stay in the same memory from batch to batch, where a student's captured step finds them.
    """

    def __init__(self, teacher: TargetSource) -> None:
        self.teacher = teacher
        self._kept: TeacherOutputs | None = None

    def begin_epoch(self, epoch: int) -> None:
        self.teacher.begin_epoch(epoch)

    @torch.no_grad()
    def prepare(self, batch: Batch) -> None:
        """Run the teacher."""
        maps, logits = self.teacher.start(batch).wait()
        if self._kept is None:
            empty = [torch.empty_like(feature_map) for feature_map in maps]
            self._kept = TeacherOutputs(empty, None if logits is None else torch.empty_like(logits))
        for kept, feature_map in zip(self._kept.maps, maps, strict=True):
            kept.copy_(feature_map)
        if logits is not None:
            self._kept.logits.copy_(logits)

    def start(self, batch: Batch) -> TeacherTargets:
        """The outputs for the prepared batch, which must be this one."""
        return TeacherTargets(self._kept)

    def release(self) -> None:
        self._kept = None
        self.teacher.release()

    def channels(self, image_size: int) -> list[int]:
        return self.teacher.channels(image_size)
