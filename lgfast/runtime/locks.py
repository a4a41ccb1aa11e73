"""A lock between processes on one machine."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

if sys.platform != "win32":
    import fcntl


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path` (created if missing); released when the process ends, however it ends.

    Where this user may neither write nor create the file, as in another user's folder, what it guards cannot be written
    either: the lock is then held as far as reading allows.
    Raises:
        OSError: it is a symbolic link.
    """
    with contextlib.suppress(PermissionError):
        path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = open_lock(path)
    if descriptor is None:
        yield
        return
    try:
        lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def open_lock(path: Path) -> int | None:
    """A descriptor of the lock's file, or None where there is none and none can be made."""
    for flags in (os.O_RDWR | os.O_CREAT, os.O_RDONLY):
        try:
            return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise OSError(f"{path}: is a symbolic link; remove it") from None
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT):
                raise
    return None


def lock(descriptor: int) -> None:
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno != errno.EBADF:  # NFS locks no file that is open for reading alone
            raise
