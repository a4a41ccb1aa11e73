"""Pillow's and timm's operations on images of any number of channels and any depth, in float32 PyTorch.

Values are shares of the value range, 0 to 1. Nothing is cut off at 0 or 1. For images of 8 bits the results are those
of Pillow up to its rounding, except for the blur, which is Gaussian here and three box filters in Pillow.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lgfast.spec.augment import AUGMENT_OPS, AugmentSpec

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow
BLUR_REACH = 6  # pixels, three deviations of the strongest blur
OUTER, INNER = 1 / 13, 5 / 13  # Pillow's filter SMOOTH


def apply_op(images: Tensor, name: str, arguments: Tensor, spec: AugmentSpec) -> Tensor:
    """Apply one operation of AUGMENT_OPS to some images.

    Args:
        images: [n, C, S, S] float32.
        arguments: [n], one an image, in the plan's units.
        spec: filter and colour of what comes into view.
    """
    if name in GEOMETRIC:
        fill = images.new_tensor(spec.mean)
        return warped(images, GEOMETRIC[name](arguments, images.shape[-1]), spec.resample, fill)
    return COLOUR[name](images, arguments.to(images.dtype)[:, None, None, None])


def grey(images: Tensor) -> Tensor:
    """Return [n, 1, S, S]: the luma of three channels, or the mean of any other number of them."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    return (images * images.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)


def auto_contrast(images: Tensor, _: Tensor) -> Tensor:
    """Stretch each channel from 0 to 1."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return torch.where(high > low, (images - low) / (high - low).clamp(min=1e-30), images)


def equalize(images: Tensor, _: Tensor) -> Tensor:
    """Replace each value by the share of smaller ones, among the values of its channel that are not the largest."""
    flat = images.flatten(2)
    ranks = torch.searchsorted(flat.sort().values, flat.contiguous())
    largest = (flat == flat.amax(2, keepdim=True)).sum(2, keepdim=True)
    others = flat.shape[2] - largest
    return torch.where(others > 0, ranks / others.clamp(min=1), flat).view_as(images)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the given number of upper bits of 8."""
    step = 2 ** (8 - bits.trunc().clamp(0, 8))
    kept = ((images * 255 + 0.5) / step).floor() * step / 255
    return torch.where(bits >= 8, images, kept)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert values from a threshold on, which is on the scale of 8 bits."""
    return torch.where(images * 255 < threshold.trunc() - 0.5, images, 1 - images)


def solarize_add(images: Tensor, addend: Tensor) -> Tensor:
    """Add to values in the lower half."""
    return torch.where(images * 255 < 127.5, (images + addend.trunc() / 255).clamp(max=1), images)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    mean = grey(images).mean((2, 3), keepdim=True)
    return mean + (images - mean) * factor


def color(images: Tensor, factor: Tensor) -> Tensor:
    """Change the distance of channels from their grey; one channel stays."""
    base = grey(images)
    return base + (images - base) * factor


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    smooth = images.clone()
    kernel = images.new_full((3, 3), OUTER)
    kernel[1, 1] = INNER
    channels = images.shape[1]
    smooth[..., 1:-1, 1:-1] = F.conv2d(images, kernel.expand(channels, 1, 3, 3), groups=channels)
    return smooth + (images - smooth) * factor


def gaussian_blur(images: Tensor, radius: Tensor) -> Tensor:
    """Blur each image with its own deviation, in pixels; edges are continued."""
    num, channels, size, _ = images.shape
    place = torch.arange(-BLUR_REACH, BLUR_REACH + 1, device=images.device)
    kernel = torch.exp(-0.5 * (place / radius.view(-1, 1).clamp(min=1e-3)) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)[:, None]
    rows = F.pad(images, (BLUR_REACH,) * 4, mode="replicate").view(1, num * channels, *[size + 2 * BLUR_REACH] * 2)
    rows = F.conv2d(rows, kernel[..., None], groups=num * channels)
    return F.conv2d(rows, kernel[..., None, :], groups=num * channels).view_as(images)


COLOUR: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "AutoContrast": auto_contrast,
    "Equalize": equalize,
    "Invert": lambda images, _: 1 - images,
    "Posterize": posterize,
    "Solarize": solarize,
    "SolarizeAdd": solarize_add,
    "Color": color,
    "Contrast": contrast,
    "Brightness": lambda images, factor: images * factor,
    "Sharpness": sharpness,
    "GaussianBlur": gaussian_blur,
}


def matrices(first: tuple, second: tuple, like: Tensor) -> Tensor:
    """Return [n, 2, 3] float64, which map a pixel (x, y, 1) of the result to its place in the source."""
    rows = [
        torch.stack([torch.as_tensor(value).to(like).expand_as(like) for value in row], -1) for row in (first, second)
    ]
    return torch.stack(rows, 1)


def rotation(degrees: Tensor, size: int) -> Tensor:
    """Return the matrices of rotations about the centre, counter-clockwise."""
    angle, centre = -degrees * (math.pi / 180), size / 2
    cos, sin = angle.cos(), angle.sin()
    return matrices((cos, sin, centre - centre * (cos + sin)), (-sin, cos, centre - centre * (cos - sin)), degrees)


GEOMETRIC: dict[str, Callable[[Tensor, int], Tensor]] = {
    "Rotate": rotation,
    "ShearX": lambda part, size: matrices((1, part, 0), (0, 1, 0), part),
    "ShearY": lambda part, size: matrices((1, 0, 0), (part, 1, 0), part),
    "TranslateX": lambda part, size: matrices((1, 0, part * size), (0, 1, 0), part),
    "TranslateY": lambda part, size: matrices((1, 0, 0), (0, 1, part * size), part),
    "TranslateXPixels": lambda pixels, size: matrices((1, 0, pixels), (0, 1, 0), pixels),
    "TranslateYPixels": lambda pixels, size: matrices((1, 0, 0), (0, 1, pixels), pixels),
}
assert set(COLOUR) | set(GEOMETRIC) | {"Hue"} == set(AUGMENT_OPS)  # only 8-bit RGB has a hue


def warped(images: Tensor, matrix: Tensor, resample: str, fill: Tensor) -> Tensor:
    """Apply Pillow's affine transform: places outside get the colour `fill`, and filters see the edge continued.

    Args:
        images: [n, C, S, S].
        matrix: [n, 2, 3], from `matrices`.
        resample: "nearest", "bilinear" or "bicubic".
        fill: [C].
    """
    size = images.shape[-1]
    centres = torch.arange(size, device=images.device, dtype=torch.float64) + 0.5
    points = torch.stack(
        (*torch.meshgrid(centres, centres, indexing="xy"), torch.ones_like(centres).expand(size, size))
    )
    x, y = torch.einsum("nij,jhw->inhw", matrix.to(images.device), points)
    is_inside = (x >= 0) & (x < size) & (y >= 0) & (y < size)
    rows, columns = (taps(place, resample) for place in (y, x))
    image = torch.arange(len(images), device=images.device)[:, None, None]
    result = images.new_zeros(len(images), size, size, images.shape[1])
    for row, row_weight in rows:
        for column, column_weight in columns:
            values = images[image, :, row.clamp(0, size - 1), column.clamp(0, size - 1)]
            result += values * (row_weight * column_weight).to(images.dtype)[..., None]
    return torch.where(is_inside[..., None], result, fill).permute(0, 3, 1, 2)


def taps(place: Tensor, resample: str) -> list[tuple[Tensor, Tensor]]:
    """Return indices and weights of the pixels that a filter reads at a place, along one axis."""
    if resample == "nearest":
        return [(place.floor().long(), torch.ones_like(place))]
    first = (place - 0.5).floor()
    d = place - 0.5 - first
    if resample == "bilinear":
        weights = {0: 1 - d, 1: d}
    else:  # Pillow's, with a = -1
        weights = {-1: -d + 2 * d**2 - d**3, 0: 1 - 2 * d**2 + d**3, 1: d + d**2 - d**3, 2: d**3 - d**2}
    return [(first.long() + offset, weight) for offset, weight in weights.items()]
