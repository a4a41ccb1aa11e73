"""Write and read the file of a decoded split: pixels first, then the index, then a footer.

    pixels [num_bytes] | sizes int32 [n, 2] | labels int64 [n] | JSON | length of the JSON (8 bytes) | magic

The footer is written last, so a file without it is half-written. Pixels start at byte 0 and are memory-mapped.
"""

import errno
import json
import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from lgfast.data.errors import one_line
from lgfast.data.image_set import ImageSet, format_of, hash_content, image_offsets
from lgfast.runtime.shared_files import StrangerError, new_file, open_own
from lgfast.spec.pixels import RGB, PixelFormat, parse_format

MAGIC = b"LGFAST01"
LENGTH_BYTES = 8


class UselessCacheError(Exception):
    """The file cannot be used: it is damaged, or a stranger's. The message says why, after its name."""


def write_cache(path: Path, name: str, decoded: Iterable, class_names: tuple[str, ...], source: dict[str, Any]) -> None:
    """Write a cache file so that `path` holds either the whole of it or what it held before.

    Args:
        decoded: (image [h, w, channels], label) pairs, written as they come; all of one format.
        source: JSON-able description of what was decoded; `read_footer` gives it back under this name.
    """
    with explained(path, "the image cache", "set LGFAST_CACHE"), new_file(path) as file:
        sizes, labels, format = write_pixels(file, decoded)
        file.flush()
        content_hash = hash_content(map_pixels(file, file.tell()), sizes, labels, class_names, format)
        header = {"name": name, "class_names": class_names, "content_hash": content_hash, "source": source}
        header["format"] = str(format)
        footer = {**header, "num_images": len(labels), "num_bytes": file.tell()}
        file.write(sizes.numpy().tobytes() + labels.numpy().tobytes())
        append_footer(file, footer)


@contextmanager
def explained(path: Path, what: str, way_on: str) -> Iterator[None]:
    """Add to an error of writing what could not be written, and what to do: the disk is full, or the folder
    another's."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(f"no space left for {what} {path}; free some, or {way_on} to a larger disk") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            reason = f"{what} {path} cannot be written ({error.strerror})"
            raise OSError(f"{reason}; {way_on} to a folder of your own") from error
        raise


def append_footer(file: BinaryIO, tree: dict[str, Any]) -> None:
    """End a file with what `read_footer` reads."""
    footer = json.dumps(tree).encode()
    file.write(footer + len(footer).to_bytes(LENGTH_BYTES, "little") + MAGIC)


def write_pixels(file: BinaryIO, decoded: Iterable) -> tuple[torch.Tensor, torch.Tensor, PixelFormat]:
    sizes, labels, format = [], [], RGB
    for image, label in decoded:
        format = format_of(image)
        file.write(np.ascontiguousarray(image).data)
        sizes.append(image.shape[:2])
        labels.append(label)
    return torch.tensor(sizes, dtype=torch.int32).reshape(-1, 2), torch.tensor(labels, dtype=torch.int64), format


def map_pixels(file: BinaryIO, num_bytes: int) -> torch.Tensor:
    """Map uint8 [num_bytes] from the start of the file, read on first use; writes to it never reach the file."""
    if num_bytes == 0:
        return torch.empty(0, dtype=torch.uint8)
    return torch.from_numpy(np.memmap(file, np.uint8, mode="c", shape=(num_bytes,)))


@contextmanager
def open_cache(path: Path, trusted: Collection[int]) -> Iterator[BinaryIO]:
    """Open a cache file for reading; an error within the `with` block counts as damage of its content.

    Args:
        trusted: the users that may own it.
    Raises:
        FileNotFoundError: there is none.
        UselessCacheError: it is damaged, or a stranger's.
    """
    try:
        with open_own(path, trusted) as file:
            yield file
    except StrangerError as error:
        raise UselessCacheError(str(error)) from error
    except (FileNotFoundError, UselessCacheError, MemoryError):
        raise
    except PermissionError as error:
        raise UselessCacheError("this user may not read it") from error
    except Exception as error:  # a footer with a flipped bit can ask for anything
        raise UselessCacheError(f"it is damaged ({one_line(error)})") from error


def read_footer(file: BinaryIO) -> dict[str, Any]:
    """Read the JSON part of a cache file.

    Raises:
        UselessCacheError: half-written, truncated or not a cache. Other errors mean a damaged one too.
    """
    file.seek(-LENGTH_BYTES - len(MAGIC), os.SEEK_END)
    ending = file.read()
    if not ending.endswith(MAGIC):
        raise UselessCacheError("it is damaged (its end is missing)")
    length = int.from_bytes(ending[:LENGTH_BYTES], "little")
    file.seek(-len(ending) - length, os.SEEK_END)
    return json.loads(file.read(length))


def read_cache(file: BinaryIO, footer: dict[str, Any]) -> ImageSet:
    """Read the image set of a cache file; its pixels are memory-mapped and checked against the stored hash.

    Raises:
        UselessCacheError: the content is not what was written. Other errors mean a damaged file too.
    """
    num_images, num_bytes = footer["num_images"], footer["num_bytes"]
    pixels, class_names = map_pixels(file, num_bytes), tuple(footer["class_names"])
    file.seek(num_bytes)
    sizes = torch.from_numpy(np.frombuffer(file.read(8 * num_images), np.int32).copy()).reshape(-1, 2)
    labels = torch.from_numpy(np.frombuffer(file.read(8 * num_images), np.int64).copy())
    format, content_hash = parse_format(footer.get("format", str(RGB))), footer["content_hash"]
    if (
        format is None
        or len(labels) != num_images
        or hash_content(pixels, sizes, labels, class_names, format) != content_hash
    ):
        raise UselessCacheError("it is damaged (its content does not match its hash)")
    offsets = image_offsets(sizes, format)
    return ImageSet(footer["name"], pixels, offsets, sizes, labels, class_names, content_hash, format=format)
