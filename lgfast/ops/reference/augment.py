"""augment with Pillow and timm's own operations, one image at a time: the truth for the native kernels.

`apply_plan` is also the CPU path of a package built without a compiler, and what the `timm` loader's workers run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lgfast.ops.random import philox_4x32
from lgfast.ops.teacher_input import teacher_input
from lgfast.spec.augment import AUGMENT_OPS, AugmentSpec

_RESAMPLE = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
# Names in timm's table whose functions differ from ours in name only; the argument in the plan is already timm's.
_TIMM_NAMES = {
    "TranslateX": "TranslateXRel",
    "TranslateY": "TranslateYRel",
    "TranslateXPixels": "TranslateX",
    "TranslateYPixels": "TranslateY",
}


def apply_plan(image: Image.Image, row: Sequence[float], spec: AugmentSpec) -> tuple[Tensor, Tensor | None]:
    """Apply one row of a plan to an RGB Pillow image.

    Returns:
        image (3, S, S) float32, normalised and erased; teacher's input (3, s, s) float32, or None for teacher_size 0.
    """
    values = dict(zip(spec.plan_columns, map(float, row), strict=True))
    picture = view_of(image, values, spec)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).to(torch.float32)
    mean, std = (torch.tensor(numbers, dtype=torch.float32)[:, None, None] for numbers in (spec.mean, spec.std))
    view = (pixels / 255 - mean) / std
    erase(view, values, spec.erase_mode)
    return view, teacher_input(view[None], spec.teacher_size)[0] if spec.teacher_size else None


def view_of(image: Image.Image, values: dict[str, float], spec: AugmentSpec) -> Image.Image:
    """Make the uint8 part of a view: crop, resize, shift, flips, operations."""
    size = spec.image_size
    top, left, height, width = (int(values[f"crop_{name}"]) for name in ("top", "left", "height", "width"))
    picture = resize(image.crop((left, top, left + width, top + height)), size, _RESAMPLE[spec.resample])
    shift_y, shift_x = int(values["shift_y"]), int(values["shift_x"])
    if shift_y or shift_x:
        picture = picture.crop((shift_x, shift_y, shift_x + size, shift_y + size))  # black outside
    if int(values["flip"]) & 1:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if int(values["flip"]) & 2:
        picture = picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    for slot in range(spec.num_slots):
        if values[f"op_{slot}"] >= 0:
            name = AUGMENT_OPS[int(values[f"op_{slot}"])]
            picture = apply_op(picture, name, values[f"arg_{slot}"], spec)
    return picture


def resize(picture: Image.Image, size: int, resample: Image.Resampling) -> Image.Image:
    """Pillow's resize to a square, rows first.

    Before Pillow 13 one call did that; since then it does columns first where a picture is much taller than wide, with
    up to one level of difference. Two calls give the same bytes with every version.
    """
    return picture.resize((size, picture.height), resample).resize((size, size), resample)


def apply_op(picture: Image.Image, name: str, argument: float, spec: AugmentSpec) -> Image.Image:
    """Apply one operation by timm's function. Keeping 0 bits gives black, as in Pillow before it refused 0."""
    from timm.data.auto_augment import NAME_TO_OP

    if name in ("Posterize", "Solarize", "SolarizeAdd"):
        argument = int(argument)
    if name == "Posterize" and argument <= 0:
        return Image.new("RGB", picture.size)
    if name == "Hue":
        return turn_hue(picture, argument)
    function = NAME_TO_OP[_TIMM_NAMES.get(name, name)]
    arguments = () if name in ("AutoContrast", "Equalize", "Invert") else (argument,)
    return function(picture, *arguments, fillcolor=spec.fill, resample=_RESAMPLE[spec.resample])


def turn_hue(picture: Image.Image, factor: float) -> Image.Image:
    """Add a part of a full turn to the hue, as torchvision's adjust_hue: in 255 steps, truncated, of 8 bits."""
    hue, *rest = picture.convert("HSV").split()
    turned = hue.point([(value + int(factor * 255)) & 255 for value in range(256)])
    return Image.merge("HSV", (turned, *rest)).convert("RGB")


def erase(view: Tensor, values: dict[str, float], mode: str) -> None:
    """Overwrite the plan's rectangle of a normalised (3, S, S) float32 view, in place."""
    top, left, height, width = (int(values[f"erase_{name}"]) for name in ("top", "left", "height", "width"))
    if height == 0 or width == 0:
        return
    rectangle = view[:, top : top + height, left : left + width]
    if mode == "const":
        rectangle.zero_()
        return
    key = torch.tensor([int(values["noise_key_0"]), int(values["noise_key_1"])])
    num_pixels = height * width if mode == "pixel" else 1
    rectangle.copy_(erase_noise(key, num_pixels).T.reshape(3, *((height, width) if mode == "pixel" else (1, 1))))


def erase_noise(key: Tensor, num_pixels: int) -> Tensor:
    """Normal noise (num_pixels, 3) float32: one Philox block per pixel, two Box-Muller pairs, one deviate unused."""
    counter = torch.zeros(num_pixels, 4, dtype=torch.int64)
    counter[:, 0] = torch.arange(num_pixels)
    return normal_deviates(philox_4x32(counter, key))[:, :3]


def normal_deviates(words: Tensor) -> Tensor:
    """Four normal deviates (..., 4) float32 from four 32-bit words each: two Box-Muller pairs."""
    words = words.to(torch.float32)
    radius = torch.sqrt(-2.0 * torch.log((words[..., 0::2] + 1.0) * 2.0**-32))
    angle = words[..., 1::2] * (2.0 * math.pi * 2.0**-32)
    return torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1).flatten(-2)
