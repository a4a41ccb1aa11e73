"""Decode a dataset once: `cached(source)` gives its images from a cache file, building the file where needed."""

import hashlib
import math
import os
import sys
import time
import warnings
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from lgfast.data.cache_file import UselessCacheError, explained, open_cache, read_cache, read_footer, write_cache
from lgfast.data.cache_size import announcement
from lgfast.data.decode import AS_STORED, Decoding, check_side, decode_image, map_in_order, show_progress
from lgfast.data.errors import some
from lgfast.data.image_set import ImageSet, format_of
from lgfast.data.sources.source import Records, Source, check_labels
from lgfast.runtime.locks import Waiting, file_lock
from lgfast.runtime.paths import cache_home
from lgfast.runtime.shared_files import owners, remove_leftovers
from lgfast.spec.pixels import PixelFormat


def cache_folder(root: Path) -> Path:
    """Return $LGFAST_CACHE, else <root>/.lgfast_cache where that can be written, else ~/.cache/lgfast."""
    if not os.environ.get("LGFAST_CACHE") and os.access(root, os.W_OK):
        return cache_beside(root)
    return cache_home()


def cache_beside(root: Path) -> Path:
    """Return the cache folder in the folder of a data set."""
    return root / ".lgfast_cache"


def cached(
    source: Source,
    folder: Path,
    skip_broken: bool = False,
    decoding: Decoding = AS_STORED,
    is_chosen: bool = True,
) -> ImageSet:
    """The decoded images of `source`, from its cache file in `folder`.

    The file is rebuilt when the source has changed (its class names; path, size or time of any file), when it is
    half-written or damaged. A file that changes and keeps its size and time is not noticed. Several processes may call
    this at once: one decodes, the others wait and read.

    Args:
        skip_broken: leave out images that cannot be decoded, with a warning that counts and names them.
        decoding: how files become pixels; each way has a cache file of its own, whatever `max_side` says.
        is_chosen: whether the user named `folder`, and so trusts its owner as this user, root and the owner of the
            images are trusted: a cache file of anybody else is rebuilt.
    Raises:
        ValueError: an image cannot be decoded, or a label is out of range.
        UnreadableError: a file cannot be read now; nothing is kept of that.
    """
    with explained(folder, "the folder of image caches", "set LGFAST_CACHE"):
        folder.mkdir(parents=True, exist_ok=True)
    trusted = owners(source.folder, *([folder] if is_chosen else []))
    kept = replace(decoding, max_side=0, pixels="rgb" if decoding.is_rgb else "stored")
    path, fingerprint = folder / cache_name(source, skip_broken, kept), fingerprint_files(source)
    with file_lock(path.with_name(path.name + ".lock"), Waiting(f"decodes the images of {source.name} into {path}")):
        found = open_good_cache(path, source, fingerprint, trusted)
        if found is None:
            remove_leftovers(path)
            build_cache(path, source, fingerprint, skip_broken, kept)
            with open_cache(path, trusted) as file:
                footer = read_footer(file)
                found = read_cache(file, footer), footer["source"]["skipped"]
    image_set, skipped = found
    if decoding.pixels not in (kept.pixels, str(image_set.format)):
        raise ValueError(
            f"data.pixels: the images of {source.folder} are {image_set.format}, expected {decoding.pixels}, as those "
            "that the network was trained on"
        )
    warn_skipped(source.name, skipped)
    paths = without(source.images, skipped)
    if len(paths) == len(image_set):  # else they are no image files
        image_set = replace(image_set, paths=paths)
    if source.label_sets is not None:
        rows = {path: row for row, path in enumerate(source.images)}
        sets = torch.from_numpy(source.label_sets[[rows[path] for path in paths]])
        image_set = image_set.with_labels(sets, source.class_names)
    return within_side(image_set, decoding.max_side, skip_broken)


def without(paths: Sequence[Path], skipped: Sequence[str]) -> Sequence[Path]:
    """Return the paths without those that a message of `skipped` begins with; both are in the source's order."""
    if not skipped:
        return paths
    kept, messages = [], deque(skipped)
    for path in paths:
        if messages and messages[0].startswith(f"{path}: "):
            messages.popleft()
        else:
            kept.append(path)
    return kept


def cache_name(source: Source, skip_broken: bool, decoding: Decoding) -> str:
    """Name a cache after the source, its folder, and the way of decoding where that is not the default."""
    identity = f"{source.folder.resolve()}|{skip_broken}" + "".join(decoding.changes())
    digest = hashlib.blake2b(identity.encode("utf-8", "surrogateescape"), digest_size=6)
    return f"{source.name}-{digest.hexdigest()}.lgfast"


def within_side(image_set: ImageSet, max_side: int, skip_broken: bool) -> ImageSet:
    """Return the images that views can be made of; raise a ValueError for others, or leave them out with a warning."""
    is_large = image_set.sizes.amax(dim=1) > (max_side or math.inf)
    if not is_large.any():
        return image_set
    errors = []
    for index in is_large.nonzero().flatten().tolist():
        try:
            check_side(image_set.sizes[index].tolist(), max_side)
        except ValueError as error:
            errors.append(f"{image_set.where(index)}: {error}")
    if not skip_broken:
        raise ValueError(f"{errors[0]}; or leave such out with data.skip_broken")
    warn_skipped(image_set.name, errors)
    return image_set.subset((~is_large).nonzero().flatten())


def fingerprint_files(source: Source) -> str:
    """Return a digest that changes when a file of the source is added, removed, renamed, resized or touched."""
    digest = hashlib.blake2b(digest_size=16)
    for path in source.files:
        status = os.stat(path) if os.path.exists(path) else os.lstat(path)  # a dangling link: decoding will name it
        entry = f"{os.path.relpath(path, source.folder)}|{status.st_size}|{status.st_mtime_ns}\n"
        digest.update(entry.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def open_good_cache(
    path: Path, source: Source, fingerprint: str, trusted: Collection[int]
) -> tuple[ImageSet, list[str]] | None:
    """Return the cached set and what it skipped; return None, and print the reason, where it has to be built."""
    try:
        with open_cache(path, trusted) as file:
            footer = read_footer(file)
            if footer["source"]["fingerprint"] != fingerprint:
                reason = "its source files have changed"
            elif tuple(footer["class_names"]) != source.class_names or footer["name"] != source.name:
                reason = "the class names have changed"
            else:
                return read_cache(file, footer), [str(text) for text in footer["source"]["skipped"]]
    except FileNotFoundError:
        return None
    except UselessCacheError as error:
        reason = str(error)
    print(f"rebuilding the image cache {path}: {reason}", file=sys.stderr)
    return None


def build_cache(path: Path, source: Source, fingerprint: str, skip_broken: bool, decoding: Decoding) -> None:
    skipped: list[str] = []
    records, start = source.read(), time.monotonic()
    check_labels(records.labels, len(source.class_names), source.folder)
    if source.images:
        print(announcement(source.name, source.images, decoding), file=sys.stderr)
    description = {"fingerprint": fingerprint, "skipped": skipped}  # `skipped` fills up while images are decoded
    decoded = decode_records(records, source.name, skipped if skip_broken else None, decoding)
    write_cache(path, source.name, decoded, source.class_names, description)
    num_images, seconds = len(records.labels) - len(skipped), time.monotonic() - start
    print(f"cached {num_images} images of {source.name} in {path} ({seconds:.1f} s)", file=sys.stderr)


def decode_records(
    records: Records, name: str, skipped: list[str] | None, decoding: Decoding
) -> Iterator[tuple[np.ndarray, int]]:
    """Yield (image, label) in order; broken files go to `skipped`, or raise where that is None."""
    if isinstance(records.images, np.ndarray):
        yield from zip(records.images, records.labels, strict=True)
        return
    decode = partial(decode_or_error, decoding=decoding)
    images = show_progress(map_in_order(decode, records.images), len(records.labels), f"decoding {name}")
    first: tuple[Path, PixelFormat] | None = None
    for path, image, label in zip(records.images, images, records.labels, strict=True):
        if not isinstance(image, ValueError):
            first = first or (path, format_of(image))
            check_one_format(first, path, format_of(image))
            yield image, label
        elif skipped is None:
            raise image
        else:
            skipped.append(str(image))
    if skipped and len(skipped) == len(records.labels):
        raise ValueError(f"{name}: none of its {len(skipped)} images can be decoded; the first: {skipped[0]}")


def check_one_format(first: tuple[Path, PixelFormat], path: Path, format: PixelFormat) -> None:
    """Raise a ValueError that names both files where pixels differ in format."""
    if format != first[1]:
        raise ValueError(
            f"data.pixels: {path} is {format}, and {first[0]} is {first[1]}; a network takes images of one format: "
            "convert or remove those of one, or use data.pixels=rgb, which makes 8-bit RGB of pictures"
        )


def decode_or_error(path: Path, decoding: Decoding = AS_STORED) -> np.ndarray | ValueError:
    """Return the image, or why it is broken; a file that cannot be read raises an error all the same."""
    try:
        return decode_image(path, decoding)
    except ValueError as error:
        return error


def warn_skipped(name: str, skipped: list[str]) -> None:
    if skipped:
        warnings.warn(f"{name}: skipped {len(skipped)} broken images: {some(skipped)}", stacklevel=3)
