"""Command line: `python -m lgfast.reproduce`, the paper's table, measured against published.

Each row is a student, base and guided, over one or more seeds. Finished runs are kept, unfinished ones resumed, so the
same command goes on where it was stopped. Writes table.md, table.csv and curves.png.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from lgfast.assembly.run import train_run
from lgfast.config import FREE_ON_RESUME, Config, load_recipe, published_top1, recipe_names, replace, split_assignment
from lgfast.records.result import Result, read_result
from lgfast.records.run_log import read_curve
from lgfast.report import plot_curves, spread
from lgfast.runtime.command_line import command_line
from lgfast.runtime.environment import describe_environment

PAPER_ROWS = ("deit-ti", "t2t-vit-7", "pit-ti", "pvt-ti", "pvtv2-b0", "convit-ti")


@dataclass(frozen=True)
class Cell:
    """One student with or without guidance."""

    row: str
    variant: str  # "base" or "guided"

    @property
    def recipe(self) -> str:
        """Recipe of the cell; a bare name such as deit-ti means CIFAR-100, the paper's table."""
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
    torch.set_num_threads(threads)
    return read_result(config.run_dir) or train_run(config, resume=True)


def run_all(configs: Sequence[Config], workers: int) -> dict[str, Result]:
    """Results by run folder. Whichever guided run comes first trains the teacher; the others wait for it."""
    threads = max(1, (os.cpu_count() or 1) // workers)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = {pool.submit(run_one, config, threads): config.run_dir for config in configs}
        return {futures[done]: done.result() for done in as_completed(futures)}


def telling(changes: dict[str, Any]) -> str:
    """The changes of the recipes that bear on what is computed, as `key=value key=value`."""
    return " ".join(f"{key}={value}" for key, value in changes.items() if not key.startswith(FREE_ON_RESUME))


def summarise(cell: Cell, runs: Sequence[Result], changes: str = "") -> dict[str, Any]:
    """One row of the table: accuracies in percent, mean and standard deviation over the seeds.

    changes: what the runs have otherwise than their recipe (`telling`).
    """
    best, last = [run.test_top1 for run in runs], [run.last_test_top1 for run in runs]
    return {
        "student": cell.row,
        "variant": cell.variant,
        "changes": changes,
        "seeds": len(runs),
        "best_top1": mean(best),
        "best_std": stdev(best) if len(best) > 1 else None,
        "last_top1": mean(last),
        "last_std": stdev(last) if len(last) > 1 else None,
        "published_top1": published_top1(cell.recipe),
        "selected_on": runs[0].selected_on,
        "minutes": mean(run.seconds for run in runs) / 60,
    }


def write_csv(rows: Sequence[dict[str, Any]], path: Path) -> None:
    environment = describe_environment()
    where = {key: environment[key] for key in ("gpu", "platform", "cpu_threads", "torch", "timm", "commit")}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=[*rows[0], *where], lineterminator="\n")
        writer.writeheader()
        writer.writerows(row | where for row in rows)


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table as Markdown: selected and last epoch, published figure, minutes a run."""
    lines = [
        "| student | variant | selected epoch (%) | last epoch (%) | published (%) | seeds | minutes a run |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        best, last = spread(row["best_top1"], row["best_std"]), spread(row["last_top1"], row["last_std"])
        published = "-" if row["published_top1"] is None else f"{row['published_top1']:.2f}"
        head = f"| {row['student']} | {row['variant']} | {best} | {last} | {published} |"
        lines.append(f"{head} {row['seeds']} | {row['minutes']:.1f} |")
    return "\n".join(lines)


def plot(runs: dict[Cell, list[Result]], path: Path) -> None:
    """Validation accuracy by epoch: base grey, guided blue, one panel a student, thin lines single seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    students = list(dict.fromkeys(cell.row for cell in runs))
    figure, panels = pyplot.subplots(1, len(students), figsize=(5.5 * len(students), 4), squeeze=False)
    for axes, student in zip(panels[0], students, strict=True):
        for cell, results in runs.items():
            if cell.row == student:
                color = {"base": "tab:gray", "guided": "tab:blue"}[cell.variant]
                plot_curves(axes, cell.variant, color, [read_curve(Path(result.run_dir)) for result in results])
        axes.set(xlabel="epoch", ylabel="accuracy on the selection images (%)", ylim=(0, 100), title=student)
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def parser() -> argparse.ArgumentParser:
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
    options = parser().parse_args(argv)
    started = time.perf_counter()
    if options.workers < 1:
        raise ValueError(f"--workers: expected a number above 0, got {options.workers}")
    changes = dict(split_assignment(text) for text in options.set)
    if options.epochs is not None:
        changes["epochs"] = options.epochs
    cells = [Cell(row, variant) for row in options.rows for variant in ("base", "guided")]
    configs = {c: [cell_config(c, seed, options.out, changes) for seed in options.seeds] for c in cells}
    done = run_all([config for group in zip(*configs.values(), strict=True) for config in group], options.workers)
    runs = {cell: [done[config.run_dir] for config in group] for cell, group in configs.items()}
    rows = [summarise(cell, results, telling(changes)) for cell, results in runs.items()]
    write_csv(rows, options.out / "table.csv")
    text = markdown(rows) + (f"\n\nThe recipes with {changed}." if (changed := telling(changes)) else "")
    (options.out / "table.md").write_text(text + "\n")
    print(f"\n{text}\n")
    try:
        plot(runs, options.out / "curves.png")
    except ImportError:
        print("no curves.png: pip install matplotlib")
    print(f"{time.perf_counter() - started:.0f} s; table, curves and runs are in {options.out}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
