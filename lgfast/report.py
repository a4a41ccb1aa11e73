"""Command line: `python -m lgfast.report runs/*`, runs side by side.

Runs that differ only in their seed are one setting, named by the keys in which the settings differ. The table has mean
and standard deviation over the complete runs, and each setting's difference from the first one, paired by seed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lgfast.reports.compare import compare
from lgfast.reports.curves import Curves, colors, write_curves
from lgfast.reports.run_report import write_run_report
from lgfast.reports.runs import Setting, find_runs, group, read_run
from lgfast.reports.spread import Spread
from lgfast.reports.table import Column, Table, write_csv
from lgfast.runtime.command_line import command_line


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Make the table of `compare`'s rows; accuracies are in percent."""
    what = "test" if rows[0]["difference_of"] == "test_top1" else "validation"
    columns = [
        Column("run", lambda row: row["run"]),
        Column("setting", lambda row: row["setting"]),
        Column("runs", runs),
        Column("validation", lambda row: spread(row, "val_score")),
        Column("test", lambda row: spread(row, "test_top1")),
        Column("test, last epoch", lambda row: spread(row, "last_test_top1")),
        Column(f"{what} against the first (p)", lambda row: "-" if row is rows[0] else against(row)),
        Column("minutes", lambda row: number(row["minutes"], 1)),
    ]
    if any(row["so_far"] is not None for row in rows):
        columns.insert(3, Column("so far", lambda row: number(row["so_far"], 2)))
    return Table.of(rows, columns)


def runs(row: dict[str, Any]) -> str:
    """Count a setting's runs; "2/3" where only two of three are complete."""
    return str(row["runs"]) if row["trained"] == row["runs"] else f"{row['trained']}/{row['runs']}"


def spread(row: dict[str, Any], figure: str) -> str:
    return str(Spread(row[figure], row[f"{figure}_std"]))


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def against(row: dict[str, Any]) -> str:
    """Write the difference from the first setting, with its p-value."""
    if row["difference"] is None:
        return "-"
    return f"{row['difference']:+.2f}" + ("" if row["p_value"] is None else f" ({row['p_value']:.2g})")


def plot(settings: Sequence[Setting], path: Path) -> None:
    """Draw accuracy on the selection images by epoch, in a colour for each setting."""
    groups = [
        Curves(f"{setting.folders}: {setting.name}", [run.curve for run in setting.runs if run.curve[0]], color)
        for setting, color in zip(settings, colors(len(settings)), strict=True)
    ]
    try:
        write_curves({"": groups}, path, "accuracy on the selection images (%)")
    except ImportError:
        raise ValueError("--plot needs matplotlib: pip install matplotlib") from None
    except ValueError as error:  # matplotlib does not know the suffix
        raise ValueError(f"--plot: cannot write {path}: {error}") from None


def command_parser() -> argparse.ArgumentParser:
    parse = argparse.ArgumentParser(prog="python -m lgfast.report", description=__doc__)
    parse.add_argument(
        "runs", nargs="+", type=Path, help="folders of runs or of sweeps; the first run's is compared with"
    )
    parse.add_argument("--csv", type=Path, metavar="FILE", help="write the table with a column for each differing key")
    parse.add_argument(
        "--html", action="store_true", help="write the page of each run anew, RUN/index.html, and what it gets wrong"
    )
    parse.add_argument("--plot", type=Path, metavar="FILE", help="write the curves as PNG, SVG or PDF")
    return parse


@command_line
def main(argv: Sequence[str] | None = None) -> int:
    options = command_parser().parse_args(argv)
    folders = find_runs(options.runs)
    settings = group([read_run(folder) for folder in folders])
    rows = compare(settings)
    print(table(rows).markdown())
    for line in notes(rows) + ends_of_guidance(settings):
        print(f"\n{line}")
    if options.csv:
        write_csv(options.csv, [setting.changes | row for setting, row in zip(settings, rows, strict=True)])
    if options.plot:
        plot(settings, options.plot)
    if options.html:
        for folder in folders:
            print(write_run_report(folder), flush=True)
    return 0


def notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return lines about what the table leaves out."""
    runs, trained, tested = (sum(row[name] for row in rows) for name in ("runs", "trained", "tested"))
    lines = []
    if trained < runs:
        lines.append(
            f"{runs - trained} of {runs} runs are not at their last epoch: their best so far has its own column and "
            "enters no mean"
        )
    if tested < trained:
        lines.append(f"{trained - tested} of {runs} runs are not tested, as in a sweep")
    return lines


def ends_of_guidance(settings: Sequence[Setting]) -> list[str]:
    """Return lines about runs whose guidance ended early: after which epoch, and what that saved."""
    return [
        f"{run.folder.name}: guidance ended after epoch {run.result.guided_epochs} of {run.keys['epochs']}, "
        f"{1 - run.result.guided_epochs / run.keys['epochs']:.0%} of its cost saved"
        for setting in settings
        for run in setting.runs
        if run.result is not None and run.result.guided_epochs is not None
    ]


if __name__ == "__main__":
    sys.exit(main())
