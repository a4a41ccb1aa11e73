"""Decode image files on all cores, in order, with progress: to 8-bit RGB, or to the pixels that they hold."""

import io
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from tqdm import tqdm

from lgfast.data.errors import one_line
from lgfast.data.formats import ARRAY_SUFFIX, formats
from lgfast.data.read import UnreadableError, read_file
from lgfast.runtime.cores import num_cores

SECONDS_BETWEEN_LINES = 10.0
RESULTS_PER_WORKER = 3  # decoded images that may wait for the writer; the largest take 268 MB each
DRAFT_FACTOR = 2  # an image that is to be reduced is decoded at least this much larger
ADVICE = "; replace the file, or leave such out with data.skip_broken"
MOST_CHANNELS = 999
MOST_EXACT = 1 << 24  # float32 holds all whole numbers up to it
SIXTEEN_BITS = ("PNG", "PPM")  # formats whose mode "I" has 16 bits: Pillow scales any PGM to them


@dataclass(frozen=True)
class Decoding:
    """How image files become pixels; the defaults keep them as they are stored.

    Attributes:
        exif_orientation: turn an image as its EXIF tag says, as viewers do.
        stored_side: reduce an image whose short side is longer to this one; 0: never.
        max_pixels: refuse an image that holds more, before it takes memory. Pillow's own bound is twice the default.
        max_side: refuse an image of which a side is longer after all that; 0: none.
        pixels: "rgb" for 8-bit RGB; "stored" for the channels and depth of the file; a format, such as "uint16x1", for
            the same, but files of other formats are refused.
    """

    exif_orientation: bool = False
    stored_side: int = 0
    max_pixels: int = 89_478_485  # where Pillow begins to warn of images made to fill the memory
    max_side: int = 0
    pixels: str = "rgb"

    @property
    def is_rgb(self) -> bool:
        return self.pixels == "rgb"

    def changes(self) -> list[str]:
        """The settings that change pixels, or which images are left out; empty for the defaults."""
        pairs = ((field.name, getattr(self, field.name), field.default) for field in fields(self))
        return [f"|{name}={value}" for name, value, usual in pairs if value != usual and name != "max_side"]


AS_STORED = Decoding()


def decode_image(path: Path, decoding: Decoding = AS_STORED) -> np.ndarray:
    """Decode an image to uint8 [h, w, 3], where 16-bit grey is scaled to 8 bits, or to [h, w, channels] as it is
    stored.

    Raises:
        ValueError: the file is broken, or no file; the message names it.
        UnreadableError: the file cannot be read now.
    """
    try:
        return decode_bytes(read_file(path), path, decoding)
    except ValueError as error:
        raise ValueError(f"{error}{ADVICE}") from error


def decode_bytes(encoded: bytes, path: Path, decoding: Decoding = AS_STORED) -> np.ndarray:
    """Decode the content of a file, as `decode_image`."""
    try:
        if path.suffix.lower() == ARRAY_SUFFIX and not decoding.is_rgb:
            pixels = decode_array(encoded, decoding)
        else:
            pixels = decode_picture(encoded, decoding)
        check_side(pixels.shape[:2], decoding.max_side)
        check_format(pixels, decoding.pixels)
        return pixels
    except MemoryError as error:
        raise UnreadableError(path, "the memory does not suffice to decode it") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{path}: cannot be decoded (no image of a kind that is read)") from error
    except Exception as error:  # in damaged content Pillow's readers trip over whatever comes
        raise ValueError(f"{path}: cannot be decoded ({one_line(error)})") from error


def decode_picture(encoded: bytes, decoding: Decoding) -> np.ndarray:
    """Decode an image of a format that Pillow reads."""
    with Image.open(io.BytesIO(encoded), formats=formats()) as image:
        check_pixels(image.size, decoding.max_pixels)
        size = stored_size(image.size, decoding.stored_side)
        if size is not None:  # a JPEG is decoded no larger than it takes
            image.draft(None, (DRAFT_FACTOR * size[0], DRAFT_FACTOR * size[1]))
        pixels = to_rgb(image) if decoding.is_rgb else as_stored(image)
        if size is not None:
            pixels = reduced(pixels, size)
        return upright(pixels, exif_orientation(image)) if decoding.exif_orientation else pixels


def decode_array(encoded: bytes, decoding: Decoding) -> np.ndarray:
    """Decode the array [h, w] or [h, w, channels] of an .npy file."""
    array = np.load(io.BytesIO(encoded), allow_pickle=False)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or 0 in array.shape:
        raise ValueError(f"an array of shape {list(array.shape)}, expected [h, w] or [h, w, channels]")
    height, width, channels = array.shape
    if channels > MOST_CHANNELS:
        raise ValueError(f"{channels} channels, expected [h, w, channels] with at most {MOST_CHANNELS}")
    check_pixels((width, height), decoding.max_pixels)
    size, pixels = stored_size((width, height), decoding.stored_side), as_kept(array)
    return pixels if size is None else reduced(pixels, size)


def as_stored(image: Image.Image) -> np.ndarray:
    """Return the pixels that the file holds, [h, w, channels]; colours of a palette as RGB.

    Raises:
        ValueError: the file holds more bits than Pillow keeps.
    """
    if image.mode not in ("I", "F") and not image.mode.startswith("I;") and has_deep_colour(image):
        raise ValueError(f"16 bits a channel, of which Pillow keeps 8 in mode {image.mode}; store it as an .npy array")
    if image.mode == "I" and image.format in SIXTEEN_BITS:
        return np.asarray(image).astype(np.uint16)[..., None]
    target = {"1": "L", "P": "RGB", "PA": "RGBA", "YCbCr": "RGB"}.get(image.mode, image.mode)
    array = np.asarray(image if target == image.mode else image.convert(target))
    return as_kept(array[..., None] if array.ndim == 2 else array)


def has_deep_colour(image: Image.Image) -> bool:
    """Whether a file of several channels, as a PNG or TIFF, has 16 bits in each, before it is loaded."""
    return any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def as_kept(array: np.ndarray) -> np.ndarray:
    """Return an array as uint8, uint16 or float32, whichever holds its values.

    Raises:
        ValueError: none holds them: they are integers above MOST_EXACT, complex, not finite or no numbers.
    """
    if array.dtype.kind == "b":
        array = array.astype(np.uint8)
    if array.dtype.kind == "u" and array.dtype.itemsize <= 2:
        return np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    if array.dtype.kind not in "iuf":
        raise ValueError(f"an array of {array.dtype}; expected numbers")
    with np.errstate(over="ignore"):  # reported below
        kept = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(kept).all():
        raise ValueError("values that are not finite (NaN or infinite); replace them")
    if array.dtype.kind in "iu" and np.abs(array).max() > MOST_EXACT:
        raise ValueError(f"{array.dtype} with values above {MOST_EXACT}, which float32 does not hold exactly")
    return kept


def reduced(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Reduce an image [h, w, channels] to (width, height); integers stay integers."""
    if pixels.dtype == np.uint8 and pixels.shape[2] == 3:
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
    planes = [Image.fromarray(plane.astype(np.float32)) for plane in np.moveaxis(pixels, 2, 0)]
    small = np.stack([np.asarray(plane.resize(size, Image.Resampling.LANCZOS)) for plane in planes], axis=2)
    if pixels.dtype == np.float32:
        return small
    return small.round().clip(0, np.iinfo(pixels.dtype).max).astype(pixels.dtype)


def check_format(pixels: np.ndarray, expected: str) -> None:
    """Raise a ValueError for pixels of another format than the one that is asked for, if one is."""
    found = f"{pixels.dtype.name}x{pixels.shape[2]}"
    if expected not in ("rgb", "stored", found):
        raise ValueError(f"its pixels are {found}, expected {expected} (data.pixels)")


def stored_size(size: tuple[int, int], stored_side: int) -> tuple[int, int] | None:
    """Return the (width, height) to which an image is reduced; None where it is kept."""
    short = min(size)
    if not 0 < stored_side < short:
        return None
    width, height = (max(1, round(side * stored_side / short)) for side in size)
    return width, height


def exif_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of a loaded image, 1 to 8; 1 (upright) where none can be read."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a damaged block of a sound image, for which Pillow's reader trips over whatever comes
        return 1
    return orientation if orientation in range(1, 9) else 1


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn the image [h, w, 3] as its EXIF orientation asks."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def check_side(size: Sequence[int], max_side: int) -> None:
    """Raise a ValueError for an image (h, w) that the views cannot be made of."""
    if 0 < max_side < max(size):
        raise ValueError(
            f"{size[0]}x{size[1]} pixels are too many to make views of, {max_side} a side are possible; "
            "store smaller images, or set data.stored_side"
        )


def check_pixels(size: tuple[int, int], max_pixels: int) -> None:
    """Raise a ValueError for an image (width, height) that would take too much memory."""
    width, height = size
    if width * height > max_pixels:
        raise ValueError(f"{width}x{height} pixels are more than data.max_pixels, {max_pixels}")


def to_rgb(image: Image.Image) -> np.ndarray:
    """Convert pixels to uint8 [h, w, 3], by Pillow's conversion where that keeps the values' meaning.

    Raises:
        ValueError: pixels of 32 bits, which have no range to scale from.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in SIXTEEN_BITS):
        grey = (np.asarray(image).astype(np.uint32) + 128) // 257  # 65535 -> 255, rounded; Pillow would clip at 255
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError(
            f"mode {image.mode}: 32-bit pixels have no known range, store them in 8 or 16 bits, or keep them "
            "with data.pixels=stored"
        )
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def map_in_order(function: Callable, items: Iterable, num_workers: int | None = None) -> Iterator:
    """Yield `function(item)` for every item, computed on a thread pool, in order, with few results in memory.

    Threads suffice: Pillow decodes outside the GIL. Where the caller leaves early, what has begun is not waited for:
    the garbage collector may close the iterator in the middle of a thread's start, whose lock a thread's end needs.
    """
    num_workers = num_workers or num_cores()
    waiting: deque = deque()
    pool = ThreadPoolExecutor(num_workers)
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= RESULTS_PER_WORKER * num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def show_progress(items: Iterable, total: int, label: str) -> Iterator:
    """Show a bar on a terminal; elsewhere print a line now and then, so that log files stay readable."""
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, desc=label, unit="image")
        return
    last_line = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - last_line > SECONDS_BETWEEN_LINES:
            last_line = time.monotonic()
            print(f"{label}: {done} of {total}", file=sys.stderr, flush=True)
