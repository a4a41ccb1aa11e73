"""What a pixel is: the type of its values and the number of its channels."""

from __future__ import annotations

import re
from dataclasses import dataclass

PATTERN = r"(uint8|uint16|float32)x([1-9][0-9]{0,2})"
ITEM_BYTES = {"uint8": 1, "uint16": 2, "float32": 4}
EIGHT_BITS = (0.0, 255.0)


@dataclass(frozen=True)
class PixelFormat:
    """The format of every pixel of a data set, written as uint16x1.

    Attributes:
        dtype: uint8, uint16 or float32.
        channels: values a pixel.
    """

    dtype: str
    channels: int

    def __str__(self) -> str:
        return f"{self.dtype}x{self.channels}"

    @property
    def num_bytes(self) -> int:
        """Bytes of a pixel."""
        return ITEM_BYTES[self.dtype] * self.channels

    @property
    def value_range(self) -> tuple[float, float] | None:
        """The values that stand for 0 and 1; None where the images decide, since few use all of 16 bits."""
        return EIGHT_BITS if self.dtype == "uint8" else None


RGB = PixelFormat("uint8", 3)


def parse_format(text: str) -> PixelFormat | None:
    """Read a format as `str` writes it; None for other text, as "rgb" and "stored".

    >>> parse_format("uint16x1").num_bytes
    2
    """
    match = re.fullmatch(PATTERN, text)
    return PixelFormat(match[1], int(match[2])) if match else None
