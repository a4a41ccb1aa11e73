"""Ctrl-C and SIGTERM: finish the step, save, and leave with a line that says how to continue."""

from __future__ import annotations

import signal


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

    def _on_signal(self, number: int, _frame: object) -> None:
        self.requested, self.signal_number = True, number
        if self.repeat_ends:
            signal.signal(number, signal.SIG_DFL)
