"""Say how large a cache of decoded images will be, before it is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from lgfast.data.decode import Decoding, stored_size
from lgfast.data.formats import formats

SAMPLE = 64  # files whose sizes stand for all
MUCH = 1 << 30


def announcement(name: str, paths: Sequence[Path], decoding: Decoding) -> str:
    """Return a line that says what will be decoded and stored."""
    num_bytes = estimated_bytes(paths, decoding)
    text = f"decoding {len(paths)} images of {name}, about {num_bytes / 1e6:,.0f} MB"
    if num_bytes > MUCH and decoding.stored_side == 0:
        text += " (data.stored_side=none keeps no more of them than the views can use)"
    return text


def estimated_bytes(paths: Sequence[Path], decoding: Decoding) -> int:
    """Estimate the bytes of all pixels, as RGB of 8 bits, from the sizes that some files state; 0 where none does."""
    sizes = [size for path in paths[:: max(1, len(paths) // SAMPLE)] if (size := stated_size(path)) is not None]
    stored = [stored_size(size, decoding.stored_side) or size for size in sizes]
    mean = sum(3 * width * height for width, height in stored) / max(1, len(stored))
    return round(mean * len(paths))


def stated_size(path: Path) -> tuple[int, int] | None:
    """Read (width, height) from the header of a file without decoding it; None where the header cannot be read."""
    try:
        if not path.is_file():
            return None
        with Image.open(path, formats=formats()) as image:
            return image.size
    except Exception:  # decoding says what is wrong
        return None
