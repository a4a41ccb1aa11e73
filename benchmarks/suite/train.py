"""Train one recipe, or go on with it, and keep the files that show the result.

    python -m benchmarks.suite.train --recipe cifar100-deit-ti-guided --runs DIR --results DIR [--teacher RECIPE]

A run lies in RUNS/<recipe>. If the teacher's recipe is not finished, it is trained first. On SIGTERM the run is saved
and the exit code is 143; the same command goes on. Metrics, curves and a table of the finished runs are copied to
RESULTS/<date>_<hardware>_<data set>/.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import row_file
from lgfast import reproduce
from lgfast.assembly.device import resolve_device
from lgfast.config import load_recipe, load_yaml, recipe_names
from lgfast.records.result import read_result
from lgfast.reports.runs import read_run
from lgfast.reports.table import write_csv
from lgfast.train import main as train

KEPT = ("metrics.jsonl", "summary.csv", "result.json", "config.yaml", "environment.json")


def run_recipe(recipe: str, runs: Path, changes: Sequence[str]) -> int:
    """Run or continue a recipe and return its exit code; return 0 at once if it is finished."""
    run = runs / recipe
    if read_result(run):
        return 0
    if (run / "config.yaml").is_file():
        return train(["--resume", str(run)])
    settings = [f"run_dir={run}", *changes]
    return train(["--recipe", recipe, *(word for text in settings for word in ("--set", text))])


def teacher_changes(changes: Sequence[str]) -> list[str]:
    """Return the settings that a teacher shares with its student: images, device, length and log."""
    return [text for text in changes if text.startswith(("data.", "device=", "epochs=", "log."))]


def collect(runs: Path, results: Path, dataset: str, device: torch.device) -> None:
    """Copy the files that show the runs on a data set; write table and curves of the finished ones."""
    begun = [name for name in recipe_names() if (runs / name / "config.yaml").is_file()]
    begun = [name for name in begun if load_yaml(runs / name / "config.yaml").data.dataset == dataset]
    folder = results_folder(results, dataset, device)
    for name in begun:
        for file in KEPT:
            if (runs / name / file).is_file():
                shutil.copyfile(runs / name / file, folder / f"{name}.{file}")
    cells = {}
    for name in begun:
        if (cell := cell_of(name)) and (result := read_result(runs / name)):
            seconds = read_run(runs / name).seconds
            cells[cell] = dataclasses.replace(result, run_dir=str(runs / name), seconds=seconds)  # it may have moved
    if not cells:
        return
    rows = [reproduce.summarise(cell, [result]) for cell, result in cells.items()]
    write_csv(folder / "table.csv", reproduce.with_environment(rows))
    (folder / "table.md").write_text(reproduce.table(rows).markdown() + "\n")
    try:
        reproduce.plot({cell: [result] for cell, result in cells.items()}, folder / "curves.png")
    except ImportError:
        print("no curves.png: matplotlib is not installed")


def cell_of(recipe: str) -> reproduce.Cell | None:
    """Return student and variant of a recipe; None for a teacher."""
    if load_recipe(recipe).guidance.weight > 0:
        return reproduce.Cell(recipe.removesuffix("-guided"), "guided")
    return reproduce.Cell(recipe.removesuffix("-base"), "base") if recipe.endswith("-base") else None


def results_folder(results: Path, dataset: str, device: torch.device) -> Path:
    """Return the folder of the data set's runs; make one with today's date if there is none."""
    slug = row_file.slug(row_file.hardware(device))
    name = re.compile(rf"\d{{4}}-\d\d-\d\d_{re.escape(slug)}_{dataset}")
    for path in sorted(results.glob(f"*_{dataset}")):
        if name.fullmatch(path.name):
            return path
    path = results / f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}_{slug}_{dataset}"
    path.mkdir(parents=True)
    return path


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--teacher", default="", help="recipe of the teacher of a guided run")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the run")
    options = parser.parse_args(argv)
    changes, code = options.set, 0
    if options.teacher:
        code = run_recipe(options.teacher, options.runs, teacher_changes(changes))
        changes = [*changes, f"teacher.checkpoint={options.runs / options.teacher}"]
    code = code or run_recipe(options.recipe, options.runs, changes)
    for name in filter(None, (options.recipe, options.teacher)):
        if (options.runs / name / "config.yaml").is_file():
            config = load_yaml(options.runs / name / "config.yaml")
            collect(options.runs, options.results, config.data.dataset, resolve_device(config.device))
            break
    return code


if __name__ == "__main__":
    sys.exit(main())
