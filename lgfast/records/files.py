"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path


class WriteError(ValueError):
    """A file could not be written: a full disk, or no permission. What was written before is intact.

    Args:
        fact: which file, and why not.
        way_on: what to do, where that is known.
    """

    def __init__(self, fact: str, way_on: str = "") -> None:
        super().__init__(f"{fact}; {way_on}" if way_on else fact)
        self.fact = fact


@contextlib.contextmanager
def atomic_path(path: Path, is_folder: bool = False) -> Iterator[Path]:
    """A temporary sibling, new and empty, to write to; renamed to `path` on success, removed on failure.

    A file that stands at `path` is replaced; a folder must be new, for no system replaces one at one stroke. Nobody
    foresees the temporary name: processes of two containers share a folder, and may have one process id.

    Raises:
        WriteError: it cannot be written; what stood at `path` is intact.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        if is_folder:
            temporary.mkdir()
        else:
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666))
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise WriteError(f"could not write {path}: {error.strerror or error}; what was there is intact") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file whole, in UTF-8; errors as `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove_leftovers(folder: Path) -> None:
    """Remove what `atomic_path` left in a folder when its process was killed; nobody else may be writing there."""
    for leftover in folder.glob(".*.tmp"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file, or every file of a folder, to the disk."""
    for file in path.iterdir() if path.is_dir() else [path]:
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
