"""The lock of a study's journal: among threads, processes and machines."""

from __future__ import annotations

import os
import socket
import sys
import time
import uuid
from pathlib import Path

from optuna.storages.journal import JournalFileSymlinkLock

from lgfast.sweep.liveness import machine, process_start

GRACE_S = 30.0  # after which a lock is broken whose holder cannot be asked; writing takes milliseconds
SILENT_S = 5.0  # before a line says what is waited for
LONGEST_PAUSE_S = 0.5


class JournalLock(JournalFileSymlinkLock):
    """A symlink beside the journal, which one process alone can make, on network file systems too.

    It names its holder. One that a killed process of this machine left is broken at once, any other one after
    `GRACE_S`. (Optuna's own waits for ever where the journal's path is relative, and else half a minute.)
    """

    def __init__(self, journal: Path) -> None:
        super().__init__(str(journal))
        self.path = journal.with_name(journal.name + ".lock")
        pid = os.getpid()
        self._self = "|".join([machine(), str(pid), str(process_start(pid)), socket.gethostname()])
        self._held = ""

    def acquire(self) -> bool:
        """Wait until it is held.

        Raises:
            OSError: the folder cannot be written.
        """
        seen, since, has_spoken, pause = "", time.monotonic(), False, 0.001
        own = f"{self._self}|{uuid.uuid4().hex}"  # new every time, so that others see that it was given back meanwhile
        while True:
            try:
                os.symlink(own, self.path)
                holder = own
            except FileExistsError:  # NFS says so of our own too, where it repeats what it was asked
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
        """Who holds it; empty where nobody does."""
        try:
            return os.readlink(self.path)
        except FileNotFoundError:
            return ""
        except OSError:  # a plain file, made by hand
            return "?"

    def break_open(self, holder: str) -> None:
        """Take the lock away from a holder that is gone; another one's, who was faster, is put back."""
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
        """Give it back, unless somebody broke it in the meantime."""
        if self.read() == self._held:
            self.path.unlink(missing_ok=True)


def is_left(holder: str) -> bool:
    """Whether the holder is a process of this machine that is gone."""
    where, _, rest = holder.partition("|")
    pid, _, rest = rest.partition("|")
    return where == machine() and pid.isdigit() and process_start(int(pid)) != rest.partition("|")[0]


def describe(holder: str) -> str:
    parts = holder.split("|")
    return f"process {parts[1]} on {parts[3]}" if len(parts) == 5 else "an unknown process"
