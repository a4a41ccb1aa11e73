"""Show a sweep while it runs: a terminal gets a table that is redrawn, anything else a line per change."""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TextIO

from lgfast.reports.table import shorten
from lgfast.runtime.printable import printable
from lgfast.sweep.forecast import Forecast
from lgfast.sweep.results import RunRow, by_setting, read_runs
from lgfast.sweep.study import Study
from lgfast.sweep.table import counts, describe, lines
from lgfast.training.console import LINE_EVERY_S, duration

if TYPE_CHECKING:
    from rich.live import Live

SHOWN = 20  # settings in the table
REDRAW_S = 1.0  # the least time between two looks at the study
TICK_S = 10.0  # the most, so that the time left moves between epochs too


class Display:
    """Shows a study as it changes, within a `with` block.

    Args:
        study: to read.
        stream: standard output if None. A terminal gets a table that stays below whatever else is printed, and goes at
            the end; anything else gets a line per change, and one a minute.
        budget_s: gives the seconds left of a time budget; None for none.
    """

    def __init__(
        self, study: Study, stream: TextIO | None = None, budget_s: Callable[[], float | None] = lambda: None
    ) -> None:
        self.study, self.stream, self.budget_s = study, stream or sys.stdout, budget_s
        self.forecast = Forecast(study.plan)
        self.live = live_region(self.stream)
        self._lock = threading.RLock()
        self._looked = self._printed = -float("inf")
        self._states: dict[tuple[int, int], str] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Display:
        if self.live is not None:
            above = Above(self.live)
            self._stack.enter_context(self.live)
            self.live.console.show_cursor(True)  # a hidden cursor would stay hidden after a second Ctrl-C
            self._stack.callback(above.close)
            self._stack.enter_context(contextlib.redirect_stdout(above))
            self._stack.enter_context(contextlib.redirect_stderr(above))
        stop = threading.Event()
        thread = threading.Thread(target=self._tick, args=(stop,), daemon=True)
        thread.start()
        self._stack.callback(thread.join)
        self._stack.callback(stop.set)
        self._printed = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _tick(self, stop: threading.Event) -> None:
        while not stop.wait(TICK_S):
            with contextlib.suppress(Exception):  # where the storage is away for a moment, the worker says so
                self.update()

    def update(self, force: bool = False) -> None:
        with self._lock:
            if not force and time.monotonic() - self._looked < REDRAW_S:
                return
            runs = read_runs(self.study)
            self._looked = time.monotonic()
            if self.live is not None:
                show(self.live, "\n".join(self.drawing(runs)))
            else:
                self.print_changes(runs)

    def drawing(self, runs: Sequence[RunRow]) -> list[str]:
        """The table's lines, cut to the terminal's size."""
        keys = [axis.key for axis in self.study.plan.space.axes]
        columns, rows = shutil.get_terminal_size()
        shown = max(1, min(SHOWN, rows - 4))  # beside header, "... more", counts and the cursor's line
        settings = by_setting(runs, len(self.study.plan.space.seeds))
        return [*lines(settings, keys, shown, columns - 1), shorten(self.summary(runs), columns - 1)]

    def summary(self, runs: Sequence[RunRow]) -> str:
        """Say how far the sweep is, e.g. "7 complete, 2 running; about 12 min left"."""
        left, budget = self.forecast.left_s(runs), self.budget_s()
        if budget is not None and (left is None or budget < left):
            return f"{counts(runs)}; stops in {duration(budget)}"
        return counts(runs) + (f"; about {duration(left)} left" if left else "")

    def print_changes(self, runs: Sequence[RunRow]) -> None:
        summary = self.summary(runs)
        for run in runs:
            before = self._states.get((run.setting, run.seed), "waiting")
            self._states[run.setting, run.seed] = run.state
            if run.state != before:
                score = "" if run.val_score is None else f"  val {run.val_score:.2f} %"
                name = f"setting {run.setting} seed {run.seed} {describe(run.changes or {})}"
                line = f"{name}: {run.state}{score}  {run.error}".rstrip()
                self.print(f"{line} ({summary})")
        if time.monotonic() - self._printed >= LINE_EVERY_S:
            self.print(summary)

    def print(self, line: str) -> None:
        print(printable(line), file=self.stream, flush=True)
        self._printed = time.monotonic()


def live_region(stream: TextIO) -> Live | None:
    """rich's region that is drawn again and again; None where the stream is no terminal or cannot move its cursor."""
    if not stream.isatty():
        return None
    try:
        from rich.console import Console
        from rich.live import Live
    except ImportError:
        return None
    console = Console(file=stream, force_terminal=True)
    if console.is_dumb_terminal:
        return None
    return Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False)


def show(live: Live, text: str) -> None:
    from rich.text import Text

    live.update(Text(text, no_wrap=True), refresh=True)


class Above(io.TextIOBase):
    """A stream that prints lines above a live region. It says that it is no terminal, so that nobody draws bars in
    it."""

    def __init__(self, live: Live) -> None:
        self.live = live
        self._begun = ""  # the part of a line that has come

    def write(self, text: str) -> int:
        from rich.text import Text

        *whole, self._begun = (self._begun + text).split("\n")
        for line in whole:
            self.live.console.print(Text(printable(line)), soft_wrap=True)
        return len(text)

    def flush(self) -> None:
        """Do nothing: a line appears when it is whole."""

    def close(self) -> None:
        if self._begun:
            self.write("\n")
        super().close()
