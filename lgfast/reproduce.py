"""Command line: `python -m lgfast.reproduce`, the paper's table, measured against published.

Each row is a student, base and guided, over one or more seeds. Finished runs are kept and unfinished ones resumed, so
the same command continues after a stop. It writes table.md, table.csv and curves.png.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from lgfast.assembly.run import train_run
from lgfast.config import FREE_ON_RESUME, Config, load_recipe, published_top1, recipe_names, replace, split_assignment
from lgfast.records.files import write_text
from lgfast.records.result import Result, read_result
from lgfast.records.run_log import read_curve
from lgfast.reports.curves import Curves, write_curves
from lgfast.reports.runs import read_run
from lgfast.reports.spread import Spread
from lgfast.reports.table import Column, Table, write_csv
from lgfast.runtime.command_line import command_line
from lgfast.runtime.cores import num_cores
from lgfast.runtime.environment import describe_environment
from lgfast.runtime.interrupt import Interrupted, InterruptFlag

PAPER_ROWS = ("deit-ti", "t2t-vit-7", "pit-ti", "pvt-ti", "pvtv2-b0", "convit-ti")
POLL_S = 0.5  # between two looks at whether the user asked to stop


@dataclass(frozen=True)
class Cell:
    """One student with or without guidance."""

    row: str
    variant: str  # "base" or "guided"

    @property
    def recipe(self) -> str:
        """Return the recipe of the cell; a bare name such as deit-ti means CIFAR-100, the paper's table."""
        names = [f"{self.row}-{self.variant}", f"cifar100-{self.row}-{self.variant}"]
        if self.variant == "guided":
            names.append(self.row)  # the digits demo
        known = [name for name in names if name in recipe_names()]
        if not known:
            raise ValueError(f"--rows: no recipe {' or '.join(names)}; known: {', '.join(recipe_names())}")
        return known[0]


def cell_config(cell: Cell, seed: int, out: Path, changes: dict[str, Any]) -> Config:
    name = f"{cell.row} {cell.variant} seed {seed}"
    run_dir = out / f"{cell.row}-{cell.variant}-seed{seed}"
    return replace(load_recipe(cell.recipe), changes | {"seed": seed, "run_dir": str(run_dir), "name": name})


def run_one(config: Config, threads: int) -> Result:
    """Train or continue one run; return its result, with the seconds of all its sessions."""
    torch.set_num_threads(threads)
    with InterruptFlag().installed(repeat_ends=False) as interrupt:
        result = read_result(config.run_dir) or train_run(config, resume=True, interrupt=interrupt)
    return dataclasses.replace(result, seconds=read_run(Path(config.run_dir)).seconds)


def run_all(configs: Sequence[Config], workers: int, interrupt: InterruptFlag) -> dict[str, Result]:
    """Results by run folder. Whichever guided run comes first trains the teacher; the others wait for it.

    Raises:
        Interrupted: the runs at work are saved, and the others have not begun.
    """
    threads = max(1, num_cores() // workers)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        with interrupts_ignored():  # by the workers too, which begin here, until a run of theirs listens
            futures = {pool.submit(run_one, config, threads): config.run_dir for config in configs}
        waiting = set(futures)
        try:
            while waiting:
                done, waiting = wait(waiting, POLL_S, FIRST_EXCEPTION)
                for future in done:
                    future.result()
                if interrupt.requested:
                    raise Interrupted("stopped; unfinished runs are saved", "the same command goes on")
        except BaseException:
            end(pool, waiting)
            raise
        return {run_dir: future.result() for future, run_dir in futures.items()}


@contextlib.contextmanager
def interrupts_ignored() -> Iterator[None]:
    """Ctrl-C does nothing within it, nor in processes that are started within it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def end(pool: ProcessPoolExecutor, waiting: set[Future]) -> None:
    """Begin no run any more, and let those at work save and stop."""
    pool.shutdown(wait=False, cancel_futures=True)
    while any(future.running() for future in waiting):
        for child in multiprocessing.active_children():  # again and again: one that still loads modules hears nothing
            if child.pid is not None:
                os.kill(child.pid, signal.SIGINT)
        waiting = wait(waiting, POLL_S).not_done


def telling(changes: dict[str, Any]) -> str:
    """Return the changes that bear on the result, as `key=value key=value`."""
    return " ".join(f"{key}={value}" for key, value in changes.items() if not key.startswith(FREE_ON_RESUME))


def summarise(cell: Cell, runs: Sequence[Result], changes: str = "") -> dict[str, Any]:
    """Make one row of the table: accuracies in percent, mean and standard deviation over the seeds.

    changes: how the runs differ from their recipe (`telling`).
    """
    best, last = Spread.of(run.test_top1 for run in runs), Spread.of(run.last_test_top1 for run in runs)
    return {
        "student": cell.row,
        "variant": cell.variant,
        "changes": changes,
        "seeds": len(runs),
        "best_top1": best.mean,
        "best_std": best.deviation,
        "last_top1": last.mean,
        "last_std": last.deviation,
        "published_top1": published_top1(cell.recipe),
        "selected_on": runs[0].selected_on,
        "minutes": mean(run.seconds for run in runs) / 60,
    }


def with_environment(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of table.csv: results, and the machine they come from."""
    environment = describe_environment()
    names = ("gpu", "platform", "cpu_threads", "torch", "timm", "commit")
    return [row | {name: environment[name] for name in names} for row in rows]


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Make the table: selected and last epoch, published figure, minutes of a run."""
    columns = [
        Column("student", lambda row: row["student"]),
        Column("variant", lambda row: row["variant"]),
        Column("selected epoch (%)", lambda row: str(Spread(row["best_top1"], row["best_std"]))),
        Column("last epoch (%)", lambda row: str(Spread(row["last_top1"], row["last_std"]))),
        Column("published (%)", lambda row: str(Spread(row["published_top1"], None))),
        Column("seeds", lambda row: str(row["seeds"])),
        Column("minutes a run", lambda row: f"{row['minutes']:.1f}"),
    ]
    return Table.of(rows, columns)


def plot(runs: dict[Cell, list[Result]], path: Path) -> None:
    """Draw validation accuracy by epoch: base in grey, guided in blue, a panel for each student."""
    panels: dict[str, list[Curves]] = {}
    for cell, results in runs.items():
        curves = [read_curve(Path(result.run_dir)) for result in results]
        color = {"base": "tab:gray", "guided": "tab:blue"}[cell.variant]
        panels.setdefault(cell.row, []).append(Curves(cell.variant, curves, color))
    write_curves(panels, path, "accuracy on the selection images (%)")


def command_parser() -> argparse.ArgumentParser:
    parse = argparse.ArgumentParser(prog="python -m lgfast.reproduce", description=__doc__)
    rows_help = "students: deit-ti, pvtv2-b0, ...; digits; any X with recipes X-base and X-guided"
    parse.add_argument("--rows", nargs="+", default=list(PAPER_ROWS), help=rows_help)
    parse.add_argument("--seeds", type=int, nargs="+", default=[1])
    parse.add_argument("--epochs", type=int, help="instead of the recipes' own, for the students")
    parse.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="set a key in every run")
    parse.add_argument("--out", type=Path, default=Path("runs/reproduce"))
    parse.add_argument("--workers", type=int, default=1, help="runs at a time; on a CPU, one a core is fastest")
    return parse


@command_line
def main(argv: Sequence[str] | None = None) -> int:
    options = command_parser().parse_args(argv)
    started = time.perf_counter()
    if options.workers < 1:
        raise ValueError(f"--workers: expected a number above 0, got {options.workers}")
    changes = dict(split_assignment(text) for text in options.set)
    if options.epochs is not None:
        changes["epochs"] = options.epochs
    cells = [Cell(row, variant) for row in options.rows for variant in ("base", "guided")]
    configs = {c: [cell_config(c, seed, options.out, changes) for seed in options.seeds] for c in cells}
    in_turn = [config for group in zip(*configs.values(), strict=True) for config in group]
    try:
        with InterruptFlag().installed() as interrupt:
            done = run_all(in_turn, options.workers, interrupt)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return 128 + interrupt.signal_number
    runs = {cell: [done[config.run_dir] for config in group] for cell, group in configs.items()}
    rows = [summarise(cell, results, telling(changes)) for cell, results in runs.items()]
    write_csv(options.out / "table.csv", with_environment(rows))
    text = table(rows).markdown() + (f"\n\nThe recipes with {changed}." if (changed := telling(changes)) else "")
    write_text(options.out / "table.md", text + "\n")
    print(f"\n{text}\n")
    try:
        plot(runs, options.out / "curves.png")
    except ImportError:
        print("no curves.png: pip install matplotlib")
    print(f"{time.perf_counter() - started:.0f} s; table, curves and runs are in {options.out}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
