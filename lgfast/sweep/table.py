"""Show a sweep as a table, and its state in words."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lgfast.reports.table import Column, Table
from lgfast.sweep.results import RunRow, SettingRow, find_winner

STATES = ("complete", "running", "waiting", "pruned", "saved", "failed", "lost")


def show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def describe(changes: Mapping[str, Any]) -> str:
    """Write changes as one text, e.g. "optim.lr=0.001 guidance.weight=1"."""
    return " ".join(f"{key}={show(value)}" for key, value in changes.items())


def settings_table(settings: Sequence[SettingRow], keys: Sequence[str]) -> Table:
    """Make a row for each setting: accuracy of its complete runs, the best so far of the others, states, values."""
    columns = [
        Column("setting", lambda row: str(row.setting)),
        Column("validation (%)", lambda row: str(row.val_score)),
        Column("so far (%)", lambda row: "-" if row.so_far is None else f"{row.so_far:.2f}"),
        Column("seeds", lambda row: f"{row.seeds}/{len(row.states)}"),
        Column("state", states),
        *map(value_column, keys),
    ]
    if all(row.so_far is None for row in settings):
        del columns[2]
    winner = find_winner(settings)
    return dataclasses.replace(Table.of(settings, columns), best=settings.index(winner) if winner else None)


def value_column(key: str) -> Column:
    return Column(key, lambda row: show(row.changes.get(key, "-")))


def states(row: SettingRow) -> str:
    """The states of a setting's seeds, counted where they differ."""
    counted = Counter(row.states)
    return row.states[0] if len(counted) == 1 else ", ".join(f"{n} {state}" for state, n in counted.items())


def lines(settings: Sequence[SettingRow], keys: Sequence[str], shown: int, width: int | None = None) -> list[str]:
    """Return the lines of the best settings' table, for a terminal."""
    hidden = len(settings) - shown
    more = [f"... and {hidden} more"] if hidden > 0 else []
    return settings_table(settings[:shown], keys).lines(width) + more


def counts(runs: Sequence[RunRow]) -> str:
    """Count runs by state, e.g. "7 complete, 2 running"."""
    found = Counter(run.state for run in runs)
    return ", ".join(f"{found[state]} {state}" for state in STATES if found[state])


def failures(runs: Sequence[RunRow], shown: int = 5) -> list[str]:
    """Say why runs failed, in a line for each error with the runs that it ended."""
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
