"""Train from Python."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from lgfast.api.process import process_kept
from lgfast.assembly.run import train_run
from lgfast.assembly.run_folder import resume_config
from lgfast.config import Config, load_recipe, replace
from lgfast.records.result import Result, read_result
from lgfast.records.run_config import read_config
from lgfast.records.run_log import SUMMARY
from lgfast.reports.run_report import write_run_report_or_warn
from lgfast.runtime import threads
from lgfast.runtime.interrupt import Interrupted, InterruptFlag
from lgfast.runtime.paths import user_path
from lgfast.training.lane import Lane
from lgfast.training.loop import Row


@dataclass(frozen=True)
class Run:
    """The folder of a run, finished or not. It is accepted wherever a path is."""

    folder: Path

    def __fspath__(self) -> str:
        return str(self.folder)

    @cached_property
    def config(self) -> Config:
        """The configuration that the run was started with."""
        return read_config(self.folder)

    @property
    def result(self) -> Result | None:
        """The run's result; None where the run is not finished."""
        return read_result(self.folder)

    @property
    def metrics(self) -> list[dict[str, float | None]]:
        """A row for each epoch, for `pandas.DataFrame(run.metrics)`; scores are None where the epoch was not judged.

        Losses are means over the epoch's steps, accuracies are in percent, `seconds` is the time of the steps.
        """
        path = self.folder / SUMMARY
        if not path.is_file():
            return []
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        return [{name: float(text) if text else None for name, text in row.items()} for row in rows]


def train(
    recipe: str | os.PathLike[str] | Config = "digits",
    changes: Mapping[str, Any] | None = None,
    *,
    resume: str | os.PathLike[str] | None = None,
    progress: bool = True,
    verbose: bool = False,
) -> Run:
    """Train a run to its end, its teacher first where it needs one, and test it.

    Args:
        recipe: a recipe of the package by name, a YAML file by path, or a configuration.
        changes: keys of the configuration and their values, e.g. {"optim.lr": 1e-3, "run_dir": "runs/mine"}.
        resume: the folder of a run to continue instead. `changes` may then hold only keys that change no result.
        progress: show a bar.
        verbose: print what `python -m lgfast.train` prints.
    Returns:
        The run, with folder, configuration, metrics and result.
    Raises:
        ValueError: a key or its value is wrong, or the run cannot begin; the message names it.
        KeyboardInterrupt: the user interrupted the run; it is saved, and the message says where.

    >>> import lgfast
    >>> short = {"epochs": 1, "data.train_limit": 40, "data.test_limit": 40, "run_dir": "runs/short"}
    >>> run = lgfast.train("digits-base", short, progress=False)
    >>> run.metrics[0]["epoch"], run.result.best_epoch
    (1.0, 1)

    In a notebook, `pandas.DataFrame(run.metrics).plot("epoch", "val_top1")` draws the curve.
    """
    config = _config(recipe, changes or {}, resume, verbose)
    if resume is not None and read_result(Path(config.run_dir)):
        return Run(Path(config.run_dir))
    interrupt = InterruptFlag()
    with process_kept(), interrupt.installed(), _bar(config, progress) as on_epoch:
        if resume is not None:
            threads.compute_as_before(os.fspath(resume))
        try:
            with contextlib.nullcontext() if verbose else contextlib.redirect_stdout(io.StringIO()):
                result = train_run(config, resume is not None, interrupt, on_epoch=on_epoch)
        except Interrupted as stop:
            raise KeyboardInterrupt(str(stop)) from None
        if config.log.report:
            write_run_report_or_warn(Path(result.run_dir))
    return Run(Path(result.run_dir))


def _config(recipe: str | os.PathLike[str] | Config, changes: Mapping[str, Any], resume: Any, verbose: bool) -> Config:
    if resume is not None:
        config = resume_config(user_path(os.fspath(resume)), dict(changes))
    else:
        config = replace(recipe if isinstance(recipe, Config) else load_recipe(os.fspath(recipe)), dict(changes))
    return config if verbose else replace(config, {"log.print_epochs": False})


@contextlib.contextmanager
def _bar(config: Config, is_shown: bool) -> Iterator[Any]:
    """Give the function that a loop calls after every epoch, which moves a bar."""
    with tqdm(desc=config.name, unit="epoch", disable=not is_shown) as bar:

        def on_epoch(lane: Lane, row: Row) -> bool:
            bar.total = lane.config.epochs
            scores = {name: f"{row[name]:.2f}" for name in ("loss", "train_top1", "val_top1") if name in row}
            bar.set_postfix(scores, refresh=False)
            bar.update(int(row["epoch"]) - bar.n)
            return False

        yield on_epoch
