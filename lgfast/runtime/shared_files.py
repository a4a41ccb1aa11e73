"""Handle files where other users may write too: use random names, follow no link, trust no stranger's file."""

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
    """A file belongs to a user who is not trusted with its content, or is no regular file."""


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Open a new file for writing and reading; it replaces `path` when the `with` block ends without an error.

    After an error it is removed, and `path` stays as it was. The umask gives its mode.
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
    """Flush a folder to the disk, which makes a rename durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes left of `new_file(path)`. The caller holds the lock of `path`."""
    earlier = path.with_name(path.name + ".partial")  # the name in older versions
    for leftover in (earlier, *path.parent.glob(f".{glob.escape(path.name)}.*.partial")):
        with contextlib.suppress(OSError):  # another user's
            leftover.unlink(missing_ok=True)


def owners(*folders: Path) -> frozenset[int]:
    """Return the users whose files are trusted: this user, root, and the owners of `folders`."""
    return frozenset({os.geteuid(), 0, *(os.stat(folder).st_uid for folder in folders)})


@contextlib.contextmanager
def open_own(path: Path, trusted: Collection[int]) -> Iterator[BinaryIO]:
    """Open a file for reading.

    Args:
        trusted: the users that may own the file, from `owners`.
    Raises:
        StrangerError: the file belongs to another user, or is a link or no regular file.
        OSError: the file cannot be opened.
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
    """Raise a StrangerError where a file or folder, or a link to it, belongs to a user who is not trusted."""
    check_user(os.lstat(path), trusted)
    check_user(os.stat(path), trusted)


def check_user(status: os.stat_result, trusted: Collection[int]) -> None:
    if status.st_uid not in trusted:
        raise StrangerError(f"it belongs to user {status.st_uid}, who is not trusted with it")
