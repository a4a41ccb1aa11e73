"""The sweep's table: redrawn in place on a terminal, a line per change elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
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
    """A header and a row per setting: values, mean and spread of validation accuracy, states of the seeds."""
    rows = [["setting", *keys, "val top-1 (%)", "seeds", "state"]]
    for row in settings:
        mean = "" if row.mean is None else score(row.mean, row.seeds, row.spread)
        states = Counter(row.states)
        state = row.states[0] if len(states) == 1 else ", ".join(f"{n} {name}" for name, n in states.items())
        values = [show(row.changes.get(key, "-")) for key in keys]
        rows.append([str(row.setting), *values, mean, f"{row.seeds}/{len(row.states)}", state])
    return rows


def table(settings: Sequence[SettingRow], keys: Sequence[str], shown: int = SHOWN) -> list[str]:
    """Aligned lines of the best settings."""
    rows = cells(settings[:shown], keys)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    hidden = len(settings) - shown
    return lines + ([f"... and {hidden} more"] if hidden > 0 else [])


def counts(runs: Sequence[RunRow]) -> str:
    """E.g. "7 complete, 2 running"."""
    found = Counter(run.state for run in runs)
    return ", ".join(f"{found[state]} {state}" for state in STATES if found[state])


class Display:
    """Shows a study as it changes.

    Args:
        study: to read.
        stream: standard output if None. A terminal gets a table that is redrawn, anything else a line per change.
    """

    def __init__(self, study: Study, stream: TextIO | None = None) -> None:
        self.study, self.stream = study, stream or sys.stdout
        self.is_live = self.stream.isatty()
        self._drawn = 0  # lines of the table on the terminal
        self._last = 0.0
        self._states: dict[tuple[int, int], str] = {}

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
        lines = [*table(by_setting(runs, len(self.study.plan.space.seeds)), keys), counts(runs)]
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        self.stream.write(up + "".join(f"\x1b[2K{line}\n" for line in lines) + "\x1b[0J")
        self.stream.flush()
        self._drawn = len(lines)

    def print_changes(self, runs: Sequence[RunRow]) -> None:
        for run in runs:
            before = self._states.get((run.setting, run.seed), "waiting")
            self._states[run.setting, run.seed] = run.state
            if run.state != before:
                top1 = "" if run.val_top1 is None else f"  val {run.val_top1:.2f} %"
                name = f"setting {run.setting} seed {run.seed} {describe(run.changes or {})}"
                line = f"{name}: {run.state}{top1}  {run.error}".rstrip()
                print(line, f"({counts(runs)})", file=self.stream, flush=True)
