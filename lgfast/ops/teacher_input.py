"""What the teacher sees of a view."""

import torch
import torch.nn.functional as F
from torch import Tensor


def teacher_input(images: Tensor, size: int) -> Tensor:
    """The teacher's view (B, 3, size, size) of normalised images (B, 3, S, S): bilinear, no antialiasing.

    224 -> 32 has source coordinates 7 i + 3, so it is every seventh pixel; equal sizes copy.
    """
    stride, rest = divmod(images.shape[-1], size)
    if rest == 0 and stride % 2 == 1:
        start = stride // 2
        return images[..., start::stride, start::stride].clone(memory_format=torch.contiguous_format)
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
