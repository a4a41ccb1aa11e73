"""Write files whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path


class WriteError(ValueError):
    """A file could not be written, for lack of room or permission. What was written before is intact.

    Args:
        fact: names the file and the reason.
        way_on: says what to do, where that is known.
    """

    def __init__(self, fact: str, way_on: str = "") -> None:
        super().__init__(f"{fact}; {way_on}" if way_on else fact)
        self.fact = fact


@contextlib.contextmanager
def atomic_path(path: Path, is_folder: bool = False) -> Iterator[Path]:
    """Give a new, empty file beside `path` to write to. It is renamed to `path` on success and removed on failure.

    An existing file at `path` is replaced. A folder must be new, since no system replaces a folder in one operation.
    The temporary name is random: processes of two containers may share a folder and have the same process id.

    Raises:
        WriteError: the file cannot be written; what was at `path` is intact.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        if path.is_dir() and not is_folder:  # else it would be refused once everything is written
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
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
    """Write a file whole, in UTF-8, names of files as the system has them; raises as `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left of `atomic_path` in a folder, in which no other process may be writing."""
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
