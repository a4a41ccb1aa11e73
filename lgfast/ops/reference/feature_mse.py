"""feature_mse in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def feature_mse(student: list[Tensor], teacher: list[Tensor], grids: list[tuple[int, int]]) -> Tensor:
    """Sum over pairs of mean((resize(student) - resize(teacher))^2) on the larger grid; float32 (float64 for float64).

    student maps are [B, h*w, C], teacher maps [B, C, h, w]. An empty batch gives 0.
    """
    differences = [_difference(s, t, grid) for s, t, grid in zip(student, teacher, grids, strict=True)]
    return torch.stack([d.square().sum() / max(d.numel(), 1) for d in differences]).sum()


def feature_mse_grads(student: list[Tensor], teacher: list[Tensor], grids: list[tuple[int, int]]) -> list[Tensor]:
    """Gradient of feature_mse for each student map, in its shape, float32 (float64 for float64)."""
    grads = []
    for s, t, grid in zip(student, teacher, grids, strict=True):
        d = _difference(s, t, grid)
        grad = _resize_backward(d * (2 / max(d.numel(), 1)), grid)
        grads.append(grad.flatten(2).transpose(1, 2))
    return grads


def _difference(student: Tensor, teacher: Tensor, grid: tuple[int, int]) -> Tensor:
    dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
    maps = student.to(dtype).transpose(1, 2).unflatten(2, grid)
    size = [max(grid[0], teacher.shape[2]), max(grid[1], teacher.shape[3])]
    return _resize(maps, size) - _resize(teacher.to(dtype), size)


def _resize(maps: Tensor, size: list[int]) -> Tensor:
    if maps.shape[0] == 0:  # interpolate refuses an empty batch
        return maps[:, :, :1, :1].expand(-1, -1, *size)
    return F.interpolate(maps, size, mode="bilinear", align_corners=False, antialias=False)


def _resize_backward(grad: Tensor, grid: tuple[int, int]) -> Tensor:
    if grad.shape[0] == 0:
        return grad[:, :, :1, :1].expand(-1, -1, *grid)
    batch, channels, *size = grad.shape
    return torch.ops.aten.upsample_bilinear2d_backward(grad, size, [batch, channels, *grid], False)
