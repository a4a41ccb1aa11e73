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
    flip(images, columns["flip"].long())
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


def flip(images: Tensor, flips: Tensor) -> None:
    """Mirror images whose first bit is set, and turn those upside down whose second is, in place.

    Args:
        flips: (B,) int64 on CPU.
    """
    for bit, axis in ((1, 3), (2, 2)):
        chosen = (flips & bit).nonzero().flatten().to(images.device)
        images[chosen] = images[chosen].flip(axis)


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
    boxes = [tuple(int(row[f"erase_{name}"]) for name in ("top", "left", "height", "width")) for row in rows]
    chosen = [index for index, (_, _, height, width) in enumerate(boxes) if height and width]
    if not chosen:
        return
    keys = torch.tensor([[int(rows[index][f"noise_key_{word}"]) for word in (0, 1)] for index in chosen])
    areas = [boxes[index][2] * boxes[index][3] if mode == "pixel" else 1 for index in chosen]
    channels = images.shape[1]
    noise = None if mode == "const" else erase_noise(keys, areas, channels, images.device).split(areas)
    for number, index in enumerate(chosen):
        top, left, height, width = boxes[index]
        rectangle = images[index, :, top : top + height, left : left + width]
        if noise is None:
            rectangle.zero_()
        else:
            sides = (height, width) if mode == "pixel" else (1, 1)
            rectangle.copy_(noise[number].T.reshape(channels, *sides))


def erase_noise(keys: Tensor, counts: Sequence[int], channels: int, device: torch.device) -> Tensor:
    """Return normal noise (n, channels) float32 for n = sum(counts) pixels; of up to three channels the reference's.

    Args:
        keys: (E, 2) int64 on CPU, the keys of E rectangles.
        counts: pixels of each.
    """
    num_blocks = -(-channels // 4)
    pixel = torch.cat([torch.arange(count) for count in counts]).to(device)
    key = keys.repeat_interleave(torch.tensor(counts), dim=0).to(device)
    counter = torch.zeros(len(pixel), num_blocks, 4, dtype=torch.int64, device=device)
    counter[..., 0] = pixel[:, None]
    counter[..., 1] = torch.arange(num_blocks, device=device)
    return normal_deviates(philox_4x32(counter, key[:, None])).flatten(1)[:, :channels]
