"""Transform maps that guidance compares in place of projected features (variants of the paper's code)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def attention_map(maps: Tensor) -> Tensor:
    """Show where an image is active: channel mean of squares, flattened, L2-normalised. [B, C, h, w] -> [B, h*w]."""
    return F.normalize(maps.square().mean(1).flatten(1), dim=1)


def similarity(maps: Tensor) -> Tensor:
    """Compare the images of a batch: Gram matrix of the flattened maps, rows L2-normalised. -> [B, B]."""
    flat = maps.flatten(1)
    return F.normalize(flat @ flat.T, dim=1)


TRANSFORMS = {"attention": attention_map, "similarity": similarity}


def transformed_mse(tokens: Tensor, grid: tuple[int, int], teacher: Tensor, transform: str) -> Tensor:
    """Compute the mean squared difference of the transformed maps, both resized bilinearly to the larger grid first.

    Args:
        tokens: student map [B, h*w, C].
        grid: (h, w).
        teacher: [B, C', h', w']; its channels need not match, the transforms remove them.
        transform: "attention" or "similarity".
    """
    student = tokens.transpose(1, 2).unflatten(2, grid)
    side = [max(a, b) for a, b in zip(grid, teacher.shape[2:], strict=True)]
    dtype = torch.promote_types(student.dtype, torch.float32)
    ours, theirs = (
        TRANSFORMS[transform](F.interpolate(maps.to(dtype), side, mode="bilinear", align_corners=False))
        for maps in (student, teacher)
    )
    return F.mse_loss(ours, theirs)
