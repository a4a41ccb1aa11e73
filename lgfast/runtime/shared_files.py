"""Files where other users may write too: no name is foreseen, no link followed, no stranger's file believed."""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO


class StrangerError(Exception):
    """A file belongs to somebody who is not trusted with what it holds, or is no regular file."""


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A new file, open for writing and reading, that replaces `path` once the block has ended well.

    Otherwise it is removed, and `path` holds what it held before. It has the mode that the umask gives.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o666)
    try:
        with open(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Make a rename durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes left of `new_file(path)`; the caller holds the lock of `path`."""
    earlier = path.with_name(path.name + ".partial")  # the name that they once had
    for leftover in (earlier, *path.parent.glob(f".{glob.escape(path.name)}.*.partial")):
        with contextlib.suppress(OSError):  # another user's
            leftover.unlink(missing_ok=True)


def owners(*folders: Path) -> frozenset[int]:
    """Who may have made a file that is believed: this user, root, and the owners of `folders`."""
    return frozenset({os.geteuid(), 0, *(os.stat(folder).st_uid for folder in folders)})


@contextlib.contextmanager
def open_own(path: Path, trusted: Collection[int]) -> Iterator[BinaryIO]:
    """A file that is open for reading.

    Args:
        trusted: the users that may own it, as `owners` gives them.
    Raises:
        StrangerError: it belongs to another user, or is a link or no regular file.
        OSError: it cannot be opened.
    """
    if path.is_symlink():
        raise StrangerError("it is a symbolic link")
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise StrangerError("it is no regular file")
        check_user(status, trusted)
        yield file


def check_owner(path: Path, trusted: Collection[int]) -> None:
    """Raise a StrangerError where a file or folder, or a link to it, belongs to another user than the trusted ones."""
    check_user(os.lstat(path), trusted)
    check_user(os.stat(path), trusted)


def check_user(status: os.stat_result, trusted: Collection[int]) -> None:
    if status.st_uid not in trusted:
        raise StrangerError(f"it belongs to user {status.st_uid}, who is not trusted with it")
