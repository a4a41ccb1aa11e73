"""The batches that every loader yields."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Batch(NamedTuple):
    """Views of some images, ready for the step."""

    images: Tensor  # (B, C, S, S), normalised
    teacher_images: Tensor | None  # (B, C, s, s), the same views at the teacher's size
    labels: Tensor  # (B,) int64; (B, K) float32 probabilities under mixup or cutmix
    indices: Tensor  # (B,) int64, of the images in the ImageSet
    teacher_rows: Tensor | None = None  # (B, F), stored outputs of the teacher where they lie in host memory

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on `device`; from pinned memory the copy is asynchronous."""
        return self.each(lambda tensor: tensor.to(device, non_blocking=True))

    def each(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """Return a batch with `function` applied to every tensor."""
        return Batch._make(None if tensor is None else function(tensor) for tensor in self)

    def need_teacher_images(self) -> Tensor:
        """Return `teacher_images`; raise a ValueError where the loader makes none."""
        if self.teacher_images is None:
            raise ValueError("teacher_images: a teacher needs them, got None; set teacher_size of the AugmentSpec")
        return self.teacher_images


class BatchStream(Protocol):
    """The batches that a loop trains on: an `EpochLoader`, or a loader whose batches bring more than images."""

    def __len__(self) -> int:
        """Batches of an epoch."""

    def __iter__(self) -> Iterator[Batch]:
        """The epoch's batches, from where `seek` chose."""

    def seek(self, epoch: int, position: int = 0) -> None:
        """Start the next `iter()` at this batch of this epoch."""

    def drop_teacher_images(self) -> None:
        """Make no more teacher images, from the next epoch on; `images` stay the same."""

    def state_dict(self) -> dict[str, Any]:
        """The position of the stream."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the batch at which `state` was taken; ValueError where other batches would follow."""
