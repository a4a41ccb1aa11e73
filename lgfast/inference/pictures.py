"""Find the picture files that a user names, and decode them in order; broken ones are listed apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lgfast.data.cache import decode_or_error
from lgfast.data.decode import ADVICE, Decoding, map_in_order
from lgfast.data.read import UnreadableError
from lgfast.data.sources.image_folder import list_images
from lgfast.runtime.paths import user_path

CHUNK = 100  # the most pictures in memory at a time


def find_pictures(paths: Sequence[str], lists: tuple[Path, ...] = (), with_arrays: bool = False) -> list[Path]:
    """Find the files that the arguments name: files, folders with all below them, and lists of paths after @.

    Args:
        lists: files that name the list which these paths are from.
        with_arrays: .npy files in folders are pictures too.
    Raises:
        ValueError: an argument names no file, or a folder or list without pictures.
    """
    found: list[Path] = []
    for text in paths:
        if not text:  # as of an unset shell variable; it must not mean this folder
            raise ValueError("PATHS: expected picture files, folders of them, or @LIST, got an empty name")
        if text.startswith("@"):
            path = user_path(text[1:])
            if path.resolve() in lists:
                raise ValueError(f"PATHS: the list {path} names itself")
            found += find_pictures(read_list(path), (*lists, path.resolve()), with_arrays)
            continue
        path = user_path(text)
        pictures = list_images(path, with_arrays) if path.is_dir() else [path]
        if not path.exists():
            raise ValueError(f"PATHS: {path} does not exist; name picture files, folders of them, or @LIST")
        if not pictures:
            raise ValueError(f"PATHS: {path} holds no pictures of a kind that is read")
        found += pictures
    return found


def read_list(path: Path) -> list[str]:
    """Read the paths in a text file, one in each line."""
    try:
        content = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise ValueError(f"PATHS: cannot read the list {path}: {error.strerror}") from None
    if not (lines := [line for line in content.splitlines() if line.strip()]):
        raise ValueError(f"PATHS: the list {path} names no pictures")
    return lines


def decode_pictures(
    paths: Sequence[Path], decoding: Decoding, broken: list[str]
) -> Iterator[tuple[list[Path], list[np.ndarray]]]:
    """Yield chunks of paths and their images, in order. A file that cannot be decoded is left out; `broken` gets the
    reason."""

    def decode(path: Path) -> np.ndarray | ValueError:
        try:
            return decode_or_error(path, decoding)
        except (UnreadableError, OSError) as error:
            return ValueError(f"{path}: cannot be read ({error})")

    for start in range(0, len(paths), CHUNK):
        chunk = paths[start : start + CHUNK]
        results = list(map_in_order(decode, chunk))
        broken += [str(result).removesuffix(ADVICE) for result in results if isinstance(result, ValueError)]
        pairs = [(path, result) for path, result in zip(chunk, results, strict=True) if isinstance(result, np.ndarray)]
        yield [path for path, _ in pairs], [image for _, image in pairs]
