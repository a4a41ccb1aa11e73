"""Cross-validation: a run for each fold, tested on that fold, and a report over the answers of all runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lgfast.assembly.images import SplitImages, read_split
from lgfast.assembly.run import train_run
from lgfast.config import Config, replace
from lgfast.data.image_set import several
from lgfast.inference.folds import SUMMARY
from lgfast.records.answers import Answers, read_answers, write_answers
from lgfast.records.result import Result, read_result
from lgfast.reports.answers import TEST, write_answer_files
from lgfast.reports.run_page import write_folds_page
from lgfast.reports.run_report import write_run_report
from lgfast.reports.spread import Spread
from lgfast.reports.table import Table, write_csv
from lgfast.runtime.interrupt import Interrupted, InterruptFlag
from lgfast.runtime.paths import user_path

TOGETHER = "out-of-fold"  # the folder with the answers of all folds


@dataclass(frozen=True)
class Folds:
    """What a cross-validation found.

    Attributes:
        folder: with a run a fold, folds.csv, predictions.csv, index.html and out-of-fold/.
        results: of each fold.
        together: for each image the answer of the run that did not train on it.
    """

    folder: Path
    results: Sequence[Result]
    together: Answers

    @property
    def top1(self) -> float:
        """Accuracy over the images of all folds, in percent."""
        return 100 * float(self.together.is_hit.mean())

    def table(self) -> Table:
        """A table with a row for each fold, then mean and spread."""
        rows, figures = (
            fold_rows(self.results),
            {"test_top1": "test", "val_top1": "validation", "teacher_test_top1": "teacher"},
        )
        cells = [[str(row["fold"]), *(cell(row[name]) for name in figures)] for row in rows]
        spreads = [str(Spread.of(row[name] for row in rows if row[name] is not None)) for name in figures]
        return Table(["fold", *(f"{title} (%)" for title in figures.values())], [*cells, ["all", *spreads]])


def cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def run_folds(config: Config, num_folds: int, interrupt: InterruptFlag) -> Folds:
    """Train and test on each fold in turn. Finished folds are kept; an unfinished one continues.

    Each fold has a teacher of its own, trained on the images that its student trains on.

    Args:
        config: of the runs; the folder of all is its run_dir.
    Raises:
        ValueError: the configuration names folds itself.
        Interrupted: what is done is kept, and the message says how to go on.
    """
    if config.data.folds:
        raise ValueError("--folds: data.folds is set too, which trains one fold; drop one of them")
    folder = user_path(config.run_dir or f"runs/{config.name}-folds-{time.strftime('%Y%m%d-%H%M%S')}")
    results, answers = [], []
    for fold in range(num_folds):
        run = fold_config(config, num_folds, fold, folder)
        try:
            results.append(read_result(run.run_dir) or train_run(run, resume=True, interrupt=interrupt))
        except Interrupted as stop:
            way_on = f"continue with the same command and --run-dir {folder}"
            raise Interrupted(f"fold {fold + 1} of {num_folds} {stop.fact}", way_on) from None
        if config.log.report:
            write_run_report(Path(run.run_dir))
        found = read_answers(Path(run.run_dir) / TEST)
        if found is None:
            raise ValueError(f"{run.run_dir} has lost its answers; lgfast evaluate {run.run_dir} makes them")
        answers.append(found)
    together = join(answers)
    write_csv(folder / "predictions.csv", prediction_rows(answers))
    write_answers(folder / TOGETHER, together)
    write_csv(folder / SUMMARY, fold_rows(results))
    folds = Folds(folder, results, together)
    if config.log.report:
        write_answer_files(together, tested_images(config, together), folder / TOGETHER)
        write_folds_page(folder, folds.table(), together, folder / TOGETHER)
    return folds


def tested_images(config: Config, together: Answers) -> SplitImages | None:
    """The images of all folds, in the order of their answers; None where they have no files to be known by."""
    images = read_split(config, "train", 0.0)
    places = {str(path): index for index, path in enumerate(images.paths or ())}
    return images.subset(torch.tensor([places[file] for file in together.files])) if places else None


def fold_config(config: Config, num_folds: int, fold: int, folder: Path) -> Config:
    name = f"fold-{fold + 1}"
    changes = {
        "data.folds": num_folds,
        "data.fold": fold,
        "run_dir": str(folder / name),
        "name": f"{config.name} {name}",
    }
    return replace(config, changes)


def fold_rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return a row for each fold, with accuracies in percent."""
    return [
        {
            "fold": number,
            "test_top1": result.test_top1,
            "val_top1": result.val_top1,
            "best_epoch": result.best_epoch,
            "teacher_test_top1": result.teacher_test_top1,
            "run_dir": result.run_dir,
        }
        for number, result in enumerate(results, start=1)
    ]


def prediction_rows(answers: Sequence[Answers]) -> list[dict[str, Any]]:
    """Return a row for each image: what the run that did not train on it predicted."""
    rows = []
    for number, found in enumerate(answers, start=1):
        likeliest = found.probabilities.max(1)
        for image, (own, named) in enumerate(zip(found.are_there, found.are_named, strict=True)):
            rows.append(
                {
                    "file": found.files[image] if found.files else "",
                    "class": several(found.class_names, own),
                    "named": several(found.class_names, named),
                    "probability": round(float(likeliest[image]), 6),
                    "fold": number,
                }
            )
    return rows


def join(parts: Sequence[Answers]) -> Answers:
    """Concatenate answers of several runs; they have the same classes."""
    return Answers(
        np.concatenate([part.logits for part in parts]),
        np.concatenate([part.labels for part in parts]),
        parts[0].class_names,
        tuple(file for part in parts for file in part.files),
        f"{len(parts)} folds, each as the run answered that did not train on it",
    )
