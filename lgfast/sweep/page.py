"""Write a sweep's page: one HTML file with the best setting, tables and plots, and links to the pages of its runs."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from lgfast.config import Config
from lgfast.records.files import write_text
from lgfast.records.run_config import FILE, read_config
from lgfast.reports.html import render
from lgfast.reports.run_page import PAGE, write_run_page
from lgfast.reports.runs import read_hardware
from lgfast.reports.spread import Spread
from lgfast.reports.table import Column, Table
from lgfast.sweep.importance import Importance, find_importance
from lgfast.sweep.plots import plot_curves, plot_heat_map, plot_importance, plot_parallel
from lgfast.sweep.results import RunRow, SettingRow, find_winner, test_of
from lgfast.sweep.space import Axis
from lgfast.sweep.study import Study
from lgfast.sweep.table import counts, describe, failures, settings_table
from lgfast.training.console import duration

MAX_ROWS = 200  # in each table of the page


class Picture(NamedTuple):
    title: str
    caption: str
    path: Path


def write_page(study: Study, runs: Sequence[RunRow], settings: Sequence[SettingRow], out: Path) -> list[str]:
    """Write the PNGs and index.html into `out`; return lines that say where, or what is missing."""
    scored = [row for row in settings if row.best_known is not None]
    if not scored:
        return []
    try:
        import matplotlib
    except ImportError:
        return ["no plots: matplotlib is missing; pip install 'lgfast[sweep]'"]
    matplotlib.use("Agg")
    with matplotlib.rc_context({"text.parse_math": False}):  # a dollar sign in a value is a dollar sign
        pictures = draw(study, runs, scored, out)
    write_run_pages(runs)
    write_text(out / "index.html", page(study, runs, settings, pictures, out))
    return [f"plots in {out}/index.html"]


def write_run_pages(runs: Sequence[RunRow]) -> None:
    """Write the page of each shown run that is complete, lies on this machine and has no page yet.

    Runs with `log.report: false` get none.
    """
    for run in runs[:MAX_ROWS]:
        folder = Path(run.run_dir)
        if run.state == "complete" and (folder / FILE).is_file() and not (folder / PAGE).exists():
            with contextlib.suppress(ValueError, OSError):  # the sweep's page links a damaged folder all the same
                if read_config(folder).log.report:
                    write_run_page(folder)


def draw(study: Study, runs: Sequence[RunRow], scored: Sequence[SettingRow], out: Path) -> list[Picture]:
    axes = study.plan.space.axes
    caption = "A colour for each of the best settings: a thin line a run, a thick one their mean."
    pictures = [Picture("Validation accuracy over epochs", caption, plot_curves(runs, scored, out / "curves.png"))]
    importance = find_importance(study, scored)
    if len(axes) > 1 and len(scored) > 3:
        x, y = two_axes(axes, importance)
        path, is_grid = plot_heat_map(scored, x, y, out / "heat_map.png")
        mean = ", the mean over the other keys" if is_grid and len(axes) > 2 else ""
        mark = "In brackets" if is_grid else "A cross"
        caption = f"Validation accuracy (%) by {x.key} and {y.key}{mean}. {mark}: not complete, the best so far."
        pictures.append(Picture("Two keys", caption, path))
    if axes and len(scored) > 1:
        caption = "A line per setting, from violet (worst) to yellow (best, thick). Values are spaced by rank."
        path = plot_parallel(scored, [axis.key for axis in axes], out / "parallel.png")
        pictures.append(Picture("Values of each setting", caption, path))
    if importance:
        path = plot_importance(importance, out / "importance.png")
        pictures.append(Picture("Importance of the keys", importance_caption(importance), path))
    return pictures


def two_axes(axes: Sequence[Axis], importance: Importance | None) -> tuple[Axis, Axis]:
    """Return the two axes that matter most, or the first two where that is not known."""
    known = list(importance.alone) if importance else []
    first, second = sorted(axes, key=lambda axis: known.index(axis.key) if axis.key in known else len(known))[:2]
    return first, second


def importance_caption(importance: Importance) -> str:
    how = "exact over the whole grid" if importance.is_exact else "of a random forest fitted to the complete runs"
    left_out = f" Not weighed, as not every run has them: {', '.join(importance.left_out)}." * bool(importance.left_out)
    return (
        "Functional ANOVA: the share of the variance of validation accuracy that each key explains alone, "
        f"and what only combinations explain; {how}.{left_out}"
    )


def page(
    study: Study,
    runs: Sequence[RunRow],
    settings: Sequence[SettingRow],
    pictures: Sequence[Picture],
    out: Path,
) -> str:
    seeds, hidden = len(study.plan.space.seeds), len(settings) - MAX_ROWS
    spread = f"; mean ± standard deviation over {seeds} seeds" if seeds > 1 else ""
    more = [f"... and {hidden} more in sweep.csv."] if hidden > 0 else []
    return render(
        "sweep.html",
        title=f"Sweep of {study.plan.base.name}",
        summary=f"{counts(runs)}. Selected on validation{spread}.",
        facts=facts(study, runs),
        best=best(study, settings, out),
        settings=settings_table(settings, [axis.key for axis in study.plan.space.axes]).head(MAX_ROWS),
        notes=[*more, *failures(runs)],
        pictures=pictures,
        runs=runs_table(runs[:MAX_ROWS], out),
        more_runs=max(0, len(runs) - MAX_ROWS),
        resume=command("--resume", out),
    )


def facts(study: Study, runs: Sequence[RunRow]) -> dict[str, str]:
    """Return data set, date and hardware by name."""
    trials = study.optuna.get_trials(deepcopy=False)
    dates = [date for trial in trials for date in (trial.datetime_start, trial.datetime_complete) if date is not None]
    told = {"data set": data_set(study.plan.base)}
    if dates:
        told["date"] = f"{min(dates):%Y-%m-%d %H:%M} to {max(dates):%Y-%m-%d %H:%M}"
    machines = dict.fromkeys(filter(None, (read_hardware(run.run_dir) for run in runs if run.run_dir)))
    return told | ({"hardware": "; ".join(machines)} if machines else {})


def data_set(config: Config) -> str:
    """Describe the data, e.g. "cifar100 at 32 px, at most 6000 training images; 15 epochs"."""
    limit = f", at most {config.data.train_limit} training images" if config.data.train_limit else ""
    root = f" in {config.data.root}" if config.data.dataset == "folder" else ""
    return f"{config.data.dataset}{root} at {config.augment.image_size} px{limit}; {config.epochs} epochs"


def best(study: Study, settings: Sequence[SettingRow], out: Path) -> dict[str, Any] | None:
    winner = find_winner(settings)
    if winner is None:
        return None
    test = test_of(study, winner)
    return {
        "setting": winner.setting,
        "changes": describe(winner.changes),
        "validation": winner.val_score,
        "test": Spread.of(test["top1"]) if test else None,
        "command": command("--config", out / "best.yaml"),
    }


def command(option: str, path: Path) -> str:
    return f"python -m lgfast.train {option} {shlex.quote(str(path))}"


def runs_table(runs: Sequence[RunRow], out: Path) -> Table:
    """A row per run, linked to its page, or to its folder where that is all there is."""
    columns = [
        Column("setting", lambda run: str(run.setting)),
        Column("seed", lambda run: str(run.seed)),
        Column("state", lambda run: run.state),
        Column("validation (%)", lambda run: "-" if run.val_score is None else f"{run.val_score:.2f}"),
        Column("epochs", lambda run: str(run.epoch)),
        Column("time", lambda run: "-" if run.seconds is None else duration(run.seconds)),
        Column("folder", lambda run: Path(run.run_dir).name if run.run_dir else "-"),
    ]
    table = Table.of(runs, columns)
    here = [(row, run.run_dir) for row, run in enumerate(runs) if run.run_dir and Path(run.run_dir).is_dir()]
    pages = [(row, Path(folder, PAGE) if Path(folder, PAGE).is_file() else Path(folder)) for row, folder in here]
    links = {(row, len(columns) - 1): quote(os.path.relpath(page, out)) for row, page in pages}
    return Table(table.titles, table.rows, links=links)
