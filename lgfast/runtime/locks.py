"""Lock files between processes on one machine.

The package filelock opens its files for writing alone; a user who may only read a shared cache must hold a lock too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lgfast.runtime import ranks

if sys.platform != "win32":
    import fcntl

POLL_S = 0.2  # time between two attempts at a lock that another process holds
PATIENCE_S = 1.0  # no line about a wait that is shorter
LINE_EVERY_S = 60.0


class Waiting:
    """Called again and again while another process holds a lock: prints a line after a second, then one a minute.

    Args:
        deed: what the other process does, after "which".
    """

    def __init__(self, deed: str) -> None:
        self.line, self.began, self.num_lines = f"waiting for another process, which {deed}", time.monotonic(), 0

    def __call__(self) -> None:
        waited = time.monotonic() - self.began
        if waited >= PATIENCE_S + self.num_lines * LINE_EVERY_S and ranks.is_speaker():
            so_far = f" ({waited:.0f} s)" if self.num_lines else ""
            print(f"{self.line}{so_far}", file=sys.stderr, flush=True)
            self.num_lines += 1


@contextlib.contextmanager
def file_lock(path: Path, while_waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold an exclusive lock on `path` (created if missing). It is released when the process ends, however it ends.

    Where this user may neither write nor create the file, as in another user's folder, what it guards cannot be written
    either. Then a lock that needs only reading is held, or none.

    Args:
        while_waiting: called again and again while another process holds the lock; an exception from it ends the wait.
    Raises:
        OSError: the path is a symbolic link.
    """
    with contextlib.suppress(PermissionError):
        path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = locked(path, while_waiting)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def locked(path: Path, while_waiting: Callable[[], None] | None) -> int | None:
    """Return the descriptor that holds the lock; None where no lock can be had."""
    while True:
        descriptor = open_lock(path)
        if descriptor is None:
            return None
        try:
            while not lock(descriptor, waits=while_waiting is None):
                if while_waiting is not None:
                    while_waiting()
                time.sleep(POLL_S)
        except BaseException:
            os.close(descriptor)
            raise
        if is_at(path, descriptor):
            return descriptor
        os.close(descriptor)  # its holder removed the file, and another file is the lock now


def open_lock(path: Path) -> int | None:
    """Open the lock's file; return None where there is none and none can be made."""
    for flags in (os.O_RDWR | os.O_CREAT, os.O_RDONLY):
        try:
            return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise OSError(f"{path}: is a symbolic link; remove it") from None
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT):
                raise
    return None


def lock(descriptor: int, waits: bool) -> bool:
    """Take the lock; return whether this process holds it now."""
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno != errno.EBADF:  # NFS locks no file that is open only for reading
            raise
    return True


def is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file is the one at the path."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
