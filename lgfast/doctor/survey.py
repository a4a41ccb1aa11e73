"""Look at every image of a split once: its size, a digest of its content, or why it cannot be decoded."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from lgfast.data.datasets import find_source
from lgfast.data.decode import AS_STORED, Decoding, decode_image, exif_orientation, map_in_order, show_progress
from lgfast.data.formats import ARRAY_SUFFIX, formats
from lgfast.data.image_set import format_of
from lgfast.data.read import UnreadableError
from lgfast.data.sources.digits import load_digits
from lgfast.data.sources.source import Records, Source, describe_unread
from lgfast.data.statistics import Moments, moments
from lgfast.spec.pixels import RGB, PixelFormat


class Look(NamedTuple):
    """One image: its digest (None where it is broken), (h, w), and its fault."""

    digest: bytes | None
    size: tuple[int, int]
    error: str = ""
    is_unreadable: bool = False  # it could not be read, and may be sound
    is_turned: bool = False  # its EXIF tag asks viewers to turn it
    is_deep: bool = False  # it holds 16 bits, of which RGB keeps 8
    format: PixelFormat = RGB
    moments: Moments | None = None  # of its pixels


@dataclass(frozen=True)
class Survey:
    """One split, image by image."""

    split: str
    looks: Sequence[Look]
    labels: Sequence[int]
    class_names: tuple[str, ...]
    image_names: Sequence[str]
    unread: str = ""  # the pictures whose kind lgfast does not read, and what to do
    label_sets: np.ndarray | None = None  # [n, K] of 0 and 1, where an image may have several classes

    def counts(self) -> np.ndarray:
        """Count the images of each class."""
        if self.label_sets is not None:
            return self.label_sets.sum(0).astype(np.int64)
        return np.bincount(self.labels, minlength=len(self.class_names))

    def have_one_label(self, first: int, second: int) -> bool:
        """Whether two images have the same classes."""
        if self.label_sets is not None:
            return bool((self.label_sets[first] == self.label_sets[second]).all())
        return self.labels[first] == self.labels[second]


def survey_split(
    name: str, root: Path, split: str, labels: str = "", label_separator: str = "", pixels: str = "rgb"
) -> Survey:
    """Decode every image of a split and keep only what the checks need.

    Args:
        labels, label_separator: of the table with the images' labels, as in `load_dataset`.
        pixels: "rgb" or "stored", as `Decoding` has it.
    Raises:
        FileNotFoundError, ValueError: the split cannot be read at all, as in `load_dataset`.
    """
    if name == "digits" and not labels:
        source = digits_source(split)
    else:
        with_arrays = pixels != "rgb"
        source = find_source(name, root, split, labels=labels, label_separator=label_separator, with_arrays=with_arrays)
    records = source.read()
    total = len(records.labels)
    looks = list(
        show_progress(look_at_all(records.images, Decoding(pixels=pixels)), total, f"looking at {name} {split}")
    )
    is_array = isinstance(records.images, np.ndarray)
    image_names = [f"image {i}" for i in range(total)] if is_array else [str(path) for path in records.images]
    unread = describe_unread(source.unread)
    return Survey(split, looks, records.labels, source.class_names, image_names, unread, source.label_sets)


def digits_source(split: str) -> Source:
    images = load_digits(split)
    records = Records(np.stack([images.image(i) for i in range(len(images))]), images.labels.tolist())
    return Source(images.name, Path(), [], images.class_names, lambda: records)


def look_at_all(images: Iterable[Path] | np.ndarray, decoding: Decoding) -> Iterator[Look]:
    look = partial(look_at, decoding=decoding)
    return map(look, images) if isinstance(images, np.ndarray) else map_in_order(look, images)


def look_at(image: Path | np.ndarray, decoding: Decoding = AS_STORED) -> Look:
    try:
        pixels = decode_image(image, decoding) if isinstance(image, Path) else image
        is_turned, is_deep = header(image) if isinstance(image, Path) else (False, False)
    except (ValueError, UnreadableError) as error:
        return Look(None, (0, 0), str(error), is_unreadable=isinstance(error, UnreadableError))
    (height, width, _), format = pixels.shape, format_of(pixels)
    kind = f"{height}x{width}" + ("" if format == RGB else f" {format}")
    digest = hashlib.blake2b(kind.encode() + np.ascontiguousarray(pixels).tobytes(), digest_size=16).digest()
    return Look(
        digest, (height, width), is_turned=is_turned, is_deep=is_deep and format == RGB, format=format,
        moments=moments(pixels),
    )  # fmt: skip


def header(path: Path) -> tuple[bool, bool]:
    """Whether viewers turn an image that can be decoded before they show it, and whether it is grey of 16 bits."""
    if path.suffix.lower() == ARRAY_SUFFIX:
        return False, False
    with Image.open(path, formats=formats()) as image:
        is_turned = image.format != "TIFF" and exif_orientation(image) != 1  # Pillow turns a TIFF itself
        return is_turned, image.mode.startswith("I")
