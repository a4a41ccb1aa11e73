"""Lock a study's journal against other threads, processes and machines."""

from __future__ import annotations

import os
import socket
import sys
import time
import uuid
from pathlib import Path

from optuna.storages.journal import JournalFileSymlinkLock

from lgfast.sweep.liveness import machine, process_start

GRACE_S = 30.0  # a lock this old is broken where its holder cannot be checked; writing takes milliseconds
SILENT_S = 5.0  # wait this long before saying what for
LONGEST_PAUSE_S = 0.5


class JournalLock(JournalFileSymlinkLock):
    """A symlink beside the journal, which one process alone can make, on network file systems too.

    The link names its holder. A lock that a killed process of this machine left is broken at once, any other after
    `GRACE_S`. (Optuna's lock waits half a minute, and for ever where the journal's path is relative.)
    """

    def __init__(self, journal: Path) -> None:
        super().__init__(str(journal))
        self.path = journal.with_name(journal.name + ".lock")
        pid = os.getpid()
        self._self = "|".join([machine(), str(pid), str(process_start(pid)), socket.gethostname()])
        self._held = ""

    def acquire(self) -> bool:
        """Wait until this process holds the lock.

        Raises:
            OSError: the folder cannot be written.
        """
        seen, since, has_spoken, pause = "", time.monotonic(), False, 0.001
        own = f"{self._self}|{uuid.uuid4().hex}"  # new each time, so that others see that it was released meanwhile
        while True:
            try:
                os.symlink(own, self.path)
                holder = own
            except FileExistsError:  # NFS may say so of our own link, when it repeats a request
                holder = self.read()
            if holder == own:
                self._held = own
                return True
            if holder != seen:
                seen, since = holder, time.monotonic()
            waited = time.monotonic() - since
            if holder and (is_left(holder) or waited > GRACE_S):
                self.break_open(holder)
                continue
            if waited > SILENT_S and not has_spoken:
                has_spoken = True
                print(f"waiting for {self.path}, held by {describe(holder)}", file=sys.stderr, flush=True)
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def read(self) -> str:
        """Return the holder's name; empty where nobody holds the lock."""
        try:
            return os.readlink(self.path)
        except FileNotFoundError:
            return ""
        except OSError:  # a plain file, made by hand
            return "?"

    def break_open(self, holder: str) -> None:
        """Remove the lock of a holder that is gone; put it back if another process took it meanwhile."""
        aside = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex}")
        try:
            os.rename(self.path, aside)
        except FileNotFoundError:
            return
        is_other = os.path.islink(aside) and os.readlink(aside) != holder
        if is_other:
            os.rename(aside, self.path)
        else:
            os.unlink(aside)

    def release(self) -> None:
        """Release the lock, unless somebody broke it in the meantime."""
        if self.read() == self._held:
            self.path.unlink(missing_ok=True)


def is_left(holder: str) -> bool:
    """Whether the holder was a process of this machine that has ended."""
    where, _, rest = holder.partition("|")
    pid, _, rest = rest.partition("|")
    return where == machine() and pid.isdigit() and process_start(int(pid)) != rest.partition("|")[0]


def describe(holder: str) -> str:
    parts = holder.split("|")
    return f"process {parts[1]} on {parts[3]}" if len(parts) == 5 else "an unknown process"
