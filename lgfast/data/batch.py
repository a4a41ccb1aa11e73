"""What every loader yields."""

from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """Views of some images, ready for the step."""

    images: Tensor  # (B, 3, S, S), normalised
    teacher_images: Tensor | None  # (B, 3, s, s), the same views at the teacher's size
    labels: Tensor  # (B,) int64; (B, K) float32 probabilities under mixup or cutmix
    indices: Tensor  # (B,) int64, places in the ImageSet
    teacher_rows: Tensor | None = None  # (B, F), stored outputs of the teacher where they lie in host memory

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on `device`; from pinned memory the copy is asynchronous."""
        return Batch(*(None if tensor is None else tensor.to(device, non_blocking=True) for tensor in self))
