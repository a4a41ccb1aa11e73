"""The sweep's table: redrawn in place on a terminal, a line per change elsewhere."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from lgfast.sweep.results import RunRow, SettingRow, by_setting, read_runs
from lgfast.sweep.study import Study

SHOWN = 20  # settings in the table
REDRAW_S = 1.0
STATES = ("complete", "running", "waiting", "pruned", "saved", "failed", "lost")


def show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def describe(changes: dict[str, Any]) -> str:
    """E.g. "optim.lr=0.001 guidance.weight=1"."""
    return " ".join(f"{key}={show(value)}" for key, value in changes.items())


def score(mean: float, values: int, spread: float) -> str:
    """E.g. "61.16 ± 2.87"; a single seed has no spread."""
    return f"{mean:.2f} ± {spread:.2f}" if values > 1 else f"{mean:.2f}"


def cells(settings: Sequence[SettingRow], keys: Sequence[str]) -> list[list[str]]:
    """A header and a row per setting: mean and spread of validation accuracy, states of the seeds, values."""
    rows = [["setting", "val top-1 (%)", "seeds", "state", *keys]]
    for row in settings:
        mean = "" if row.mean is None else score(row.mean, row.seeds, row.spread)
        states = Counter(row.states)
        state = row.states[0] if len(states) == 1 else ", ".join(f"{n} {name}" for name, n in states.items())
        values = [show(row.changes.get(key, "-")) for key in keys]
        rows.append([str(row.setting), mean, f"{row.seeds}/{len(row.states)}", state, *values])
    return rows


def number_columns(rows: Sequence[Sequence[str]]) -> list[bool]:
    """Which columns below the header hold numbers alone; those are aligned right."""
    return [all(map(is_number, column[1:])) for column in zip(*rows, strict=True)]


def is_number(text: str) -> bool:
    """Of a cell: a number, one with its spread, a share such as 1/3, or nothing."""
    try:
        return text in ("", "-") or all(float(part) is not None for part in text.replace("±", "/").split("/"))
    except ValueError:
        return False


def table(
    settings: Sequence[SettingRow], keys: Sequence[str], shown: int = SHOWN, columns: int | None = None
) -> list[str]:
    """Aligned lines of the best settings, cut to `columns` characters if given."""
    rows = cells(settings[:shown], keys)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    are_numbers = number_columns(rows)
    lines = [
        "  ".join(
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, are_numbers, strict=True)
        ).rstrip()
        for row in rows
    ]
    hidden = len(settings) - shown
    lines += [f"... and {hidden} more"] if hidden > 0 else []
    return [shorten(line, columns) if columns else line for line in lines]


def shorten(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "\N{HORIZONTAL ELLIPSIS}"


def counts(runs: Sequence[RunRow]) -> str:
    """E.g. "7 complete, 2 running"."""
    found = Counter(run.state for run in runs)
    return ", ".join(f"{found[state]} {state}" for state in STATES if found[state])


def failures(runs: Sequence[RunRow], shown: int = 5) -> list[str]:
    """Why runs failed: a line per error, with the runs it ended."""
    by_error: dict[str, list[str]] = {}
    for run in runs:
        if run.state == "failed":
            by_error.setdefault(run.error, []).append(f"{run.setting} seed {run.seed}")
    lines = []
    for error, names in list(by_error.items())[:shown]:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        lines.append(f"failed: setting {', '.join(names[:3])}{more}: {error}")
    hidden = len(by_error) - shown
    return lines + ([f"... and {hidden} more errors, all in sweep.csv"] if hidden > 0 else [])


class Display:
    """Shows a study as it changes, from `with` on.

    Args:
        study: to read.
        stream: standard output if None. A terminal gets a table that is redrawn below whatever else is printed, and
            erased at the end; anything else gets a line per change.
    """

    def __init__(self, study: Study, stream: TextIO | None = None) -> None:
        self.study, self.stream = study, stream or sys.stdout
        self.is_live = self.stream.isatty()
        self._drawn = 0  # lines of the table on the terminal
        self._last = 0.0
        self._states: dict[tuple[int, int], str] = {}
        self._redirected = contextlib.ExitStack()

    def __enter__(self) -> Display:
        if self.is_live:
            self._redirected.enter_context(contextlib.redirect_stdout(Below(sys.stdout, self.erase)))
            self._redirected.enter_context(contextlib.redirect_stderr(Below(sys.stderr, self.erase)))
        return self

    def __exit__(self, *_: object) -> None:
        self._redirected.close()
        self.erase()

    def update(self, force: bool = False) -> None:
        if not force and time.monotonic() - self._last < REDRAW_S:
            return
        self._last = time.monotonic()
        runs = read_runs(self.study)
        if self.is_live:
            self.redraw(runs)
        else:
            self.print_changes(runs)

    def redraw(self, runs: Sequence[RunRow]) -> None:
        keys = [axis.key for axis in self.study.plan.space.axes]
        columns, lines = shutil.get_terminal_size()
        shown = max(1, min(SHOWN, lines - 4))  # beside header, "... more", counts and the cursor's line
        rows = by_setting(runs, len(self.study.plan.space.seeds))
        drawn = [*table(rows, keys, shown, columns - 1), shorten(counts(runs), columns - 1)]
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        self.stream.write(up + "\r" + "".join(f"\x1b[2K{line}\n" for line in drawn) + "\x1b[0J")
        self.stream.flush()
        self._drawn = len(drawn)

    def erase(self) -> None:
        if self._drawn:
            self.stream.write(f"\x1b[{self._drawn}A\r\x1b[0J")
            self.stream.flush()
        self._drawn = 0

    def print_changes(self, runs: Sequence[RunRow]) -> None:
        for run in runs:
            before = self._states.get((run.setting, run.seed), "waiting")
            self._states[run.setting, run.seed] = run.state
            if run.state != before:
                top1 = "" if run.val_top1 is None else f"  val {run.val_top1:.2f} %"
                name = f"setting {run.setting} seed {run.seed} {describe(run.changes or {})}"
                line = f"{name}: {run.state}{top1}  {run.error}".rstrip()
                print(line, f"({counts(runs)})", file=self.stream, flush=True)


class Below:
    """A stream whose text the table makes room for: it calls `erase` before it writes."""

    def __init__(self, stream: TextIO, erase: Callable[[], None]) -> None:
        self._stream, self._erase = stream, erase

    def write(self, text: str) -> int:
        self._erase()
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
