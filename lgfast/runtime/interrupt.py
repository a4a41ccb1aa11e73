"""Handle Ctrl-C and SIGTERM: finish the step, save, and end with a line that says how to continue.

Where there is nothing to save yet, as while a command loads its modules or a run its images, end at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

NOTHING_BEGUN = "stopped before the first step"
AGAIN = "nothing is lost: the same command begins again"


def leave_at_once(number: int, _frame: object) -> None:
    """A handler for a process that still loads its modules: an exception would come out of their C code as another."""
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{NOTHING_BEGUN}; {AGAIN}\n".encode())
    os._exit(128 + number)


def is_own_command() -> bool:
    """Whether this process is `python -m lgfast...`."""
    words = iter(sys.orig_argv)
    return "-m" in words and next(words, "").partition(".")[0] == "lgfast"


def while_loading() -> None:
    """Let Ctrl-C end this process, which is a command line, in one line until `loaded` is called."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, leave_at_once)


def loaded() -> None:
    """Let Ctrl-C be a KeyboardInterrupt again, after `while_loading`."""
    if signal.getsignal(signal.SIGINT) is leave_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class Interrupted(Exception):
    """The user asked to stop; nothing is lost.

    Args:
        fact: says what stopped, and where it is saved.
        way_on: says how to continue.
    """

    def __init__(self, fact: str, way_on: str) -> None:
        super().__init__(f"{fact}; {way_on}")
        self.fact, self.way_on = fact, way_on

    def __reduce__(self) -> tuple[type[Interrupted], tuple[str, str]]:  # for it comes from other processes too
        return type(self), (self.fact, self.way_on)


class InterruptFlag:
    """A flag that the first SIGINT or SIGTERM sets. A second signal ends the process at once."""

    def __init__(self) -> None:
        self.requested = False
        self.signal_number = 0
        self.repeat_ends = True
        self._is_at_once = False

    def install(self, repeat_ends: bool = True) -> InterruptFlag:
        """Handle signals from now on.

        Args:
            repeat_ends: a second signal ends the process. False under torchrun, which passes on a Ctrl-C that its ranks
                have got from the terminal already.
        """
        self.repeat_ends = repeat_ends
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        return self

    @contextlib.contextmanager
    def installed(self, repeat_ends: bool = True) -> Iterator[InterruptFlag]:
        """Handle signals within a `with` block, then restore their handlers. Outside the main thread no signal
        comes."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self.install(repeat_ends)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Within it a signal ends what is done there in its middle, for nothing of it has to be saved.

        Raises:
            Interrupted: there was a signal.
        """
        self._is_at_once = True
        try:
            if self.signal_number:
                raise KeyboardInterrupt
            yield
        except KeyboardInterrupt:
            raise Interrupted(NOTHING_BEGUN, AGAIN) from None
        finally:
            self._is_at_once = False

    def _on_signal(self, number: int, _frame: object) -> None:
        self.requested, self.signal_number = True, number
        if self.repeat_ends:
            signal.signal(number, signal.SIG_DFL)
        if self._is_at_once:
            self._is_at_once = False
            raise KeyboardInterrupt
