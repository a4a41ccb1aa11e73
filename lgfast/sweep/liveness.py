"""Find out which workers of a study are alive.

A worker writes a beat into the study every few seconds. Observers on its machine notice its death at once, by its
process id. Others notice when the beat has not changed for `GRACE_S` of their own clock, so clocks need not agree.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna import Study

BEAT_S = 10.0
GRACE_S = 60.0
PREFIX = "worker:"


def machine() -> str:
    """A name that is equal for processes that see each other's process ids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return socket.gethostname()


def process_start(pid: int) -> str | None:
    """Return a mark of when the process started, which tells a reused process id from the old one; None if it is
    gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    try:  # not Linux
        os.kill(pid, 0)
        return "unknown"
    except ProcessLookupError:
        return None


class Heartbeat:
    """Announces this process as a worker of the study until `stop`."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.id = uuid.uuid4().hex[:12]
        pid = os.getpid()
        self.record = {"machine": machine(), "host": socket.gethostname(), "pid": pid, "start": process_start(pid)}
        self.epochs: dict[str, int] = {}  # trial number -> epochs done, judged or not; told with each beat
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> Heartbeat:
        self._beat(0)
        self._thread.start()
        return self

    def _beat(self, number: int) -> None:
        self.study.set_user_attr(PREFIX + self.id, self.record | {"beat": number, "epochs": dict(self.epochs)})

    def _run(self) -> None:
        number = 0
        while not self._stopped.wait(BEAT_S):
            number += 1
            with contextlib.suppress(Exception):  # if the storage is away for a moment, the next beat tries again
                self._beat(number)

    def stop(self) -> None:
        """Write that the worker has left. Where the storage is away, it counts as gone when its process ends."""
        self._stopped.set()
        self._thread.join()
        with contextlib.suppress(Exception):  # a storage that is away may be what ends the worker
            self._beat(-1)


class Observer:
    """Judges workers by their records in the study."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, float]] = {}  # name -> last beat, when this process first saw it

    def is_alive(self, worker: str | None, attrs: Mapping[str, Any]) -> bool:
        """Whether the worker still runs; `attrs` are the study's user attributes."""
        record = attrs.get(f"{PREFIX}{worker}")
        if worker is None or record is None or record["beat"] < 0:
            return False
        if record["machine"] == machine():
            return process_start(record["pid"]) == record["start"]
        return self.is_fresh(worker, record["beat"])

    def is_fresh(self, name: str, beat: int) -> bool:
        """Whether the beat changed within `GRACE_S` of this process's clock."""
        last, since = self._seen.get(name, (None, 0.0))
        if beat != last:
            self._seen[name] = (beat, time.monotonic())
            return True
        return time.monotonic() - since < GRACE_S

    def count_alive(self, attrs: Mapping[str, Any]) -> int:
        workers = [name.removeprefix(PREFIX) for name in attrs if name.startswith(PREFIX)]
        return sum(self.is_alive(worker, attrs) for worker in workers)
