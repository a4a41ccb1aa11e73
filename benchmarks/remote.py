"""Run a call in its own process, so that each provider has the allocator, threads and caches that its users have."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch


class RemoteCall:
    """A call that runs in a process of its own; calling it waits until the call there is done.

    Args:
        make: makes the call in the new process, which uses as many threads as this one. Must be picklable.
    Raises:
        Whatever the call raises; MemoryError if its process was killed.
    """

    processor_ms: float  # processor time of the last call, all threads together

    def __init__(self, make: Callable[[], Callable[[], object]]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, make, torch.get_num_threads()), daemon=True)
        self.process.start()
        theirs.close()
        self._wait()

    def __call__(self) -> None:
        self.connection.send("call")
        self.processor_ms = self._wait()

    def close(self) -> None:
        """End the process."""
        self.connection.close()
        self.process.join()

    def _wait(self) -> float:
        try:
            answer = self.connection.recv()
        except EOFError:
            raise MemoryError("the provider's process was killed") from None  # as systems without memory do
        if isinstance(answer, Exception):
            raise answer
        return answer


def _serve(connection: Connection, make: Callable[[], Callable[[], object]], num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    made = []
    _answer(connection, lambda: made.append(make()))
    while True:
        try:
            connection.recv()
        except EOFError:
            return
        _answer(connection, made[0])


def _answer(connection: Connection, call: Callable[[], object]) -> None:
    """Send the milliseconds of processor time that a call took, or what it raised."""
    started = time.process_time()
    try:
        call()
        connection.send((time.process_time() - started) * 1e3)
    except Exception as error:
        connection.send(error)
