"""End a sweep: test the winner, write the results, tell the user."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from lgfast.reports.spread import Spread
from lgfast.runtime.printable import printable
from lgfast.sweep.page import write_page
from lgfast.sweep.results import SettingRow, find_winner, measure_winner, write_results
from lgfast.sweep.storage import is_url
from lgfast.sweep.study import Study
from lgfast.sweep.table import failures, lines
from lgfast.sweep.worker import StopFlag

SHOWN = 20  # settings in the table


def join_command(study: Study, out: Path) -> str:
    if is_url(study.place):
        return f"python -m lgfast.train --study {study.place} --study-name {study.name}"
    return f"python -m lgfast.train --resume {out}"


def conclude(study: Study, out: Path, here: dict[str, Any], interrupt: StopFlag) -> int:
    """Write tables, page and best configuration; test the winner once, unless the user stopped the sweep."""
    runs, settings = write_results(study, out)
    keys = [axis.key for axis in study.plan.space.axes]
    was_stopped = interrupt.requested and not interrupt.is_out_of_time
    winner = find_winner(settings)
    test = None
    if winner and not was_stopped:
        base = study.plan.base
        root, device = here.get("data.root", base.data.root), here.get("device", base.device)
        test = measure_winner(study, winner, runs, root, device)
        write_results(study, out)
    columns = shutil.get_terminal_size().columns - 1 if sys.stdout.isatty() else None
    told = [*lines(settings, keys, SHOWN, columns), *failures(runs)]
    print(
        "",
        *map(printable, [*told, "", *describe_winner(winner, test, out), *write_page(study, runs, settings, out)]),
        sep="\n",
    )
    if interrupt.requested:
        print(f"stopped; continue with: {join_command(study, out)}", file=sys.stderr)
        return 128 + interrupt.signal_number if was_stopped else 0
    if any(run.state in ("waiting", "running", "saved") for run in runs):  # every worker ended early
        print(f"not finished; continue with: {join_command(study, out)}", file=sys.stderr)
        return 1
    if winner is None:
        print("no trial succeeded; their errors are listed above", file=sys.stderr)
        return 1
    return 0


def describe_winner(winner: SettingRow | None, test: dict[str, Any] | None, out: Path) -> list[str]:
    if winner is None:
        return ["no setting is complete yet"]
    tested = ""
    if test:
        seeds = len(test["top1"])
        tested = f", test {Spread.of(test['top1'])} % ({seeds} seed{'s' * (seeds > 1)})"
    return [
        f"best: setting {winner.setting}, validation {winner.val_score} %{tested}",
        f"train it again with: python -m lgfast.train --config {out}/best.yaml; all runs in {out}/sweep.csv",
    ]
