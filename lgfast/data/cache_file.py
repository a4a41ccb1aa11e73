"""The file that holds a decoded split: pixels first, then the index, then a footer.

    pixels uint8 [num_bytes] | sizes int32 [n, 2] | labels int64 [n] | JSON | length of the JSON (8 bytes) | magic

The footer is written last, so a file without it is half-written. Pixels start at byte 0 and are memory-mapped.
"""

import errno
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lgfast.data.image_set import ImageSet, hash_content, image_offsets

MAGIC = b"LGFAST01"
LENGTH_BYTES = 8


class DamagedCacheError(Exception):
    """The file is not a complete cache, or its content does not match its hash."""


def write_cache(path: Path, name: str, decoded: Iterable, class_names: tuple[str, ...], source: dict[str, Any]) -> None:
    """Writes a cache file so that `path` holds either the whole of it or what it held before.

    Args:
        decoded: (image uint8 [h, w, 3], label) pairs, written as they come.
        source: JSON-able description of what was decoded; `read_footer` gives it back under this name.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            sizes, labels = write_pixels(file, decoded)
            file.flush()
            content_hash = hash_content(map_pixels(partial, file.tell()), sizes, labels, class_names)
            header = {"name": name, "class_names": class_names, "content_hash": content_hash, "source": source}
            footer = {**header, "num_images": len(labels), "num_bytes": file.tell()}
            file.write(sizes.numpy().tobytes() + labels.numpy().tobytes())
            append_footer(file, footer)
        os.replace(partial, path)
        sync_folder(path.parent)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            message = f"no space left for the image cache {path}; free some, or set LGFAST_CACHE to a larger disk"
            raise OSError(errno.ENOSPC, message) from error
        raise


def append_footer(file, tree: dict[str, Any]) -> None:
    """Ends a file with what `read_footer` reads, and brings all of it to the disk."""
    footer = json.dumps(tree).encode()
    file.write(footer + len(footer).to_bytes(LENGTH_BYTES, "little") + MAGIC)
    file.flush()
    os.fsync(file.fileno())


def write_pixels(file, decoded: Iterable) -> tuple[torch.Tensor, torch.Tensor]:
    sizes, labels = [], []
    for image, label in decoded:
        file.write(np.ascontiguousarray(image).data)
        sizes.append(image.shape[:2])
        labels.append(label)
    return torch.tensor(sizes, dtype=torch.int32).reshape(-1, 2), torch.tensor(labels, dtype=torch.int64)


def sync_folder(folder: Path) -> None:
    """Makes a rename durable; a no-op where folders cannot be opened (Windows)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def map_pixels(path: Path, num_bytes: int) -> torch.Tensor:
    """uint8 [num_bytes] from the start of the file, read on first touch; writes to it never reach the file."""
    if num_bytes == 0:
        return torch.empty(0, dtype=torch.uint8)
    return torch.from_numpy(np.memmap(path, np.uint8, mode="c", shape=(num_bytes,)))


def read_footer(path: Path) -> dict[str, Any]:
    """The JSON part of a cache file.

    Raises:
        DamagedCacheError: half-written, truncated or not a cache.
    """
    try:
        with open(path, "rb") as file:
            file.seek(-LENGTH_BYTES - len(MAGIC), os.SEEK_END)
            ending = file.read()
            if not ending.endswith(MAGIC):
                raise DamagedCacheError("its end is missing")
            length = int.from_bytes(ending[:LENGTH_BYTES], "little")
            file.seek(-len(ending) - length, os.SEEK_END)
            return json.loads(file.read(length))
    except (OSError, ValueError, OverflowError) as error:
        raise DamagedCacheError(str(error)) from error


def read_cache(path: Path, footer: dict[str, Any]) -> ImageSet:
    """The image set in a cache file, its pixels memory-mapped and checked against the stored hash.

    Raises:
        DamagedCacheError: the content is not what was written.
    """
    num_images, num_bytes = footer["num_images"], footer["num_bytes"]
    with open(path, "rb") as file:
        file.seek(num_bytes)
        sizes = torch.from_numpy(np.fromfile(file, np.int32, 2 * num_images)).reshape(-1, 2)
        labels = torch.from_numpy(np.fromfile(file, np.int64, num_images))
    pixels, class_names = map_pixels(path, num_bytes), tuple(footer["class_names"])
    if len(labels) != num_images or hash_content(pixels, sizes, labels, class_names) != footer["content_hash"]:
        raise DamagedCacheError("its content does not match its hash")
    return ImageSet(footer["name"], pixels, image_offsets(sizes), sizes, labels, class_names, footer["content_hash"])
