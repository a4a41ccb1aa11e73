"""Make the views that a plan describes, for images of any channels and depth: `augment` in float32 PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lgfast.data.tensor_ops import apply_op
from lgfast.ops.random import philox_4x32
from lgfast.ops.reference.augment import normal_deviates
from lgfast.ops.teacher_input import teacher_input
from lgfast.spec.augment import AUGMENT_OPS, AugmentSpec


def make_views(pictures: Sequence[Tensor], plan: Tensor, spec: AugmentSpec) -> tuple[Tensor, Tensor | None]:
    """Make a view of each picture: crop, resize, shift, flips, operations, normalise, erase; and the teacher's input.

    Args:
        pictures: [h, w, C] each, int or float, on the device where views are made.
        plan: (B, P) float64 on CPU, of `augment_plan` or `eval_plan`.
        spec: the one of the plan; it has a mean for each channel.
    Returns:
        images (B, C, S, S) float32; teacher_images (B, C, s, s), or None for spec.teacher_size 0.
    """
    columns = dict(zip(spec.plan_columns, plan.unbind(1), strict=True))
    rows = [dict(zip(spec.plan_columns, row, strict=True)) for row in plan.tolist()]
    images = torch.stack([cropped(picture, row, spec) for picture, row in zip(pictures, rows, strict=True)])
    images = flipped(images, columns["flip"].long().to(images.device))
    for slot in range(spec.num_slots):
        operate(images, columns[f"op_{slot}"].long(), columns[f"arg_{slot}"], spec)
    mean, std = (images.new_tensor(values)[:, None, None] for values in (spec.mean, spec.std))
    images = (images - mean) / std
    erase(images, rows, spec.erase_mode)
    return images, teacher_input(images, spec.teacher_size) if spec.teacher_size else None


def cropped(picture: Tensor, row: dict[str, float], spec: AugmentSpec) -> Tensor:
    """Return the crop of a picture at the output's size, (C, S, S) float32, as shares of the value range."""
    top, left, height, width = (int(row[f"crop_{name}"]) for name in ("top", "left", "height", "width"))
    low, high = spec.value_range
    crop = picture[top : top + height, left : left + width].permute(2, 0, 1).float()
    view = resized((crop - low) / (high - low), spec.image_size, spec.resample)
    shift_y, shift_x = int(row["shift_y"]), int(row["shift_x"])
    if shift_y or shift_x:
        view = F.pad(view, (-shift_x, shift_x, -shift_y, shift_y))  # 0 outside
    return view


def resized(image: Tensor, size: int, resample: str) -> Tensor:
    """Resize an image (C, h, w) to a square as Pillow does, without its rounding."""
    if resample != "nearest":
        return F.interpolate(image[None], size=(size, size), mode=resample, antialias=True)[0]
    rows, columns = (nearest(side, size).to(image.device) for side in image.shape[1:])
    return image[:, rows[:, None], columns]


def nearest(side: int, size: int) -> Tensor:
    """Return the pixel that each of `size` reads. Adds steps one by one as Pillow does, which decides at the edges."""
    steps = torch.full((size,), side / size, dtype=torch.float64)
    steps[0] /= 2
    return steps.cumsum(0).long()


def flipped(images: Tensor, flips: Tensor) -> Tensor:
    """Mirror images whose first bit is set, and turn those upside down whose second is."""
    images = torch.where((flips & 1).bool()[:, None, None, None], images.flip(3), images)
    return torch.where((flips & 2).bool()[:, None, None, None], images.flip(2), images)


def operate(images: Tensor, ops: Tensor, arguments: Tensor, spec: AugmentSpec) -> None:
    """Apply to each image its operation of one slot, in place; images of one operation together.

    Args:
        ops: (B,) int64 on CPU, index into AUGMENT_OPS; -1: none.
        arguments: (B,) float64 on CPU.
    """
    for op in ops.unique().tolist():
        if op >= 0:
            chosen = (ops == op).nonzero().flatten()
            place = chosen.to(images.device)
            images[place] = apply_op(images[place], AUGMENT_OPS[op], arguments[chosen].to(images.device), spec)


def erase(images: Tensor, rows: Sequence[dict[str, float]], mode: str) -> None:
    """Overwrite the plan's rectangle of normalised images, in place."""
    for image, row in zip(images, rows, strict=True):
        top, left, height, width = (int(row[f"erase_{name}"]) for name in ("top", "left", "height", "width"))
        if height == 0 or width == 0:
            continue
        rectangle = image[:, top : top + height, left : left + width]
        if mode == "const":
            rectangle.zero_()
            continue
        sides = (height, width) if mode == "pixel" else (1, 1)
        key = torch.tensor([int(row["noise_key_0"]), int(row["noise_key_1"])], device=image.device)
        noise = erase_noise(key, sides[0] * sides[1], len(image))
        rectangle.copy_(noise.T.reshape(len(image), *sides))


def erase_noise(key: Tensor, num_pixels: int, channels: int) -> Tensor:
    """Return normal noise (num_pixels, channels) float32; for up to three channels that of the reference."""
    num_blocks = -(-channels // 4)
    counter = torch.zeros(num_pixels, num_blocks, 4, dtype=torch.int64, device=key.device)
    counter[..., 0] = torch.arange(num_pixels, device=key.device)[:, None]
    counter[..., 1] = torch.arange(num_blocks, device=key.device)
    return normal_deviates(philox_4x32(counter, key)).flatten(1)[:, :channels]
