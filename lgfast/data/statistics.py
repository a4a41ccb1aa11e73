"""Measure the pixels of training images: the values that stand for 0 and 1, and each channel's mean and deviation."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from lgfast.data.image_set import ImageSet

MOST_MEASURED = 2000  # images, spread evenly over the set
LEAST_STD = 1e-6  # of a channel that is the same everywhere


class PixelStatistics(NamedTuple):
    """What normalises images.

    Attributes:
        value_range: pixel values that stand for 0 and 1.
        mean, std: of values in [0, 1], one a channel.
    """

    value_range: tuple[float, float]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __str__(self) -> str:
        low, high = self.value_range
        mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        return f"mean {mean}; standard deviation {std} (of values from {low:g} to {high:g} as 0 to 1)"


class Moments(NamedTuple):
    """Sums over the pixels of an image, float64 for each channel, and its lowest and highest value."""

    pixels: int
    total: np.ndarray
    squares: np.ndarray
    low: float
    high: float


def moments(image: np.ndarray) -> Moments:
    """Sum up an image [h, w, channels]."""
    values = image.reshape(-1, image.shape[2])
    exact = values.astype(np.float64)
    return Moments(len(values), exact.sum(0), (exact * exact).sum(0), float(values.min()), float(values.max()))


def combined(parts: list[Moments], value_range: tuple[float, float] | None) -> PixelStatistics:
    """Return the statistics of the pixels of all parts.

    Args:
        value_range: the values that stand for 0 and 1; None: the lowest and the highest value of all.
    """
    count = sum(part.pixels for part in parts)
    mean = np.sum([part.total for part in parts], axis=0) / count
    variance = np.sum([part.squares for part in parts], axis=0) / count - mean**2
    low, high = value_range or (min(part.low for part in parts), max(part.high for part in parts))
    width = high - low if high > low else 1.0
    unit_mean, unit_std = (mean - low) / width, np.sqrt(np.maximum(variance, 0)) / width
    return PixelStatistics(
        (low, low + width),
        tuple(float(value) for value in unit_mean.clip(0, 1)),
        tuple(float(value) for value in unit_std.clip(LEAST_STD)),
    )


def measure(images: ImageSet, value_range: tuple[float, float] | None = None) -> PixelStatistics:
    """Measure up to MOST_MEASURED images.

    Args:
        value_range: the values that stand for 0 and 1; None: those of the format, or else the lowest and the highest.
    """
    count = min(len(images), MOST_MEASURED)
    chosen = torch.linspace(0, len(images) - 1, count, dtype=torch.float64).long().tolist()
    return combined([moments(images.image(index)) for index in chosen], value_range or images.format.value_range)
