"""Ctrl-C and SIGTERM: finish the step, save, and leave with a line that says how to continue."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


class Interrupted(Exception):
    """The user asked to stop; nothing is lost.

    Args:
        fact: what stopped, and where it is saved.
        way_on: how to continue.
    """

    def __init__(self, fact: str, way_on: str) -> None:
        super().__init__(f"{fact}; {way_on}")
        self.fact = fact


class InterruptFlag:
    """Set by the first SIGINT or SIGTERM. A second one ends the process at once."""

    def __init__(self) -> None:
        self.requested = False
        self.signal_number = 0
        self.repeat_ends = True

    def install(self, repeat_ends: bool = True) -> InterruptFlag:
        """Listen from now on.

        Args:
            repeat_ends: False under torchrun, which passes on the Ctrl-C that its ranks got from the terminal too.
        """
        self.repeat_ends = repeat_ends
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        return self

    @contextlib.contextmanager
    def installed(self) -> Iterator[InterruptFlag]:
        """Listen within it, and leave the signals as they were. In a thread of its own no signal comes to listen to."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self.install()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: object) -> None:
        self.requested, self.signal_number = True, number
        if self.repeat_ends:
            signal.signal(number, signal.SIG_DFL)
