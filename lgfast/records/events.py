"""Write scalars for TensorBoard, without a thread."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

_count = itertools.count()


class EventFile:
    """The event file of a run. (TensorBoard's own writer has a thread. It outlives a run that is not closed, prints its
    errors, and ends the run at the next line.)

    Any failure is one warning, after which nothing more is written: the run's own files hold the same numbers.

    Args:
        folder: the file's folder, which is made if it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: BinaryIO | None = None
        try:
            from tensorboard.compat.proto.event_pb2 import Event
            from tensorboard.compat.proto.summary_pb2 import Summary
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError:  # the doctor says that it is not installed
            return
        self._event, self._summary, self._record = Event, Summary, RecordWriter
        try:
            folder.mkdir(parents=True, exist_ok=True)
            name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_count)}"
            self._file = (folder / name).open("ab")
            self._append(Event(wall_time=time.time(), file_version="brain.Event:2"))
        except OSError as error:
            self._give_up(error)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        if self._file is None:
            return
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        try:
            self._append(self._event(wall_time=time.time(), step=step, summary=self._summary(value=values)))
        except OSError as error:
            self._give_up(error)

    def _append(self, event) -> None:
        writer = self._record(self._file)
        writer.write(event.SerializeToString())
        writer.flush()

    def _give_up(self, error: OSError) -> None:
        file, self._file = self._file, None
        with contextlib.suppress(OSError):  # an error of what was still to be written
            if file is not None:
                file.close()
        warnings.warn(
            f"no more TensorBoard events are written to {self.folder}: {error.strerror or error}; the run goes on, and "
            "its metrics.jsonl holds the same numbers",
            stacklevel=2,
        )

    def close(self) -> None:
        if self._file is not None:
            self._file.close()  # every record was flushed
            self._file = None
