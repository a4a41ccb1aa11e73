"""Write the page of a run, RUN/index.html: one file that shows what was trained, how, and what it gets wrong."""

from __future__ import annotations

import contextlib
import csv
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from lgfast.config import Config, get, valid_keys
from lgfast.data.rendering import how_rendered
from lgfast.records.answers import Answers, read_answers
from lgfast.records.files import write_text
from lgfast.records.result import Result, read_result
from lgfast.records.run_config import read_config
from lgfast.records.run_log import read_rows
from lgfast.reports.answers import TEST
from lgfast.reports.html import render
from lgfast.reports.run_attention import FILE as ATTENTION
from lgfast.reports.run_attention import read_attention
from lgfast.reports.run_features import FILE as FEATURES
from lgfast.reports.run_pictures import draw_curves, draw_distances
from lgfast.reports.scores import class_rows
from lgfast.reports.table import Column, Table
from lgfast.training.console import duration

T = TypeVar("T")
PAGE = "index.html"
TITLES = {
    "map": "mean average precision (%)",
    "top1": "top-1 (%)",
    "top5": "top-5 (%)",
    "balanced_accuracy": "balanced accuracy (%)",
    "macro_f1": "macro-F1 (%)",
    "ece": "calibration error (%)",
    "loss": "loss",
}
LOOKS = (
    "From the class token, or all tokens where there is none: attention rollout through all layers, and the heads of "
    "the last one. Warm is much, from the least to the most of each map."
)
NO_PLOTS = "Curves are left out: matplotlib is missing (pip install 'lgfast[plot]')."


class Picture(NamedTuple):
    title: str
    caption: str
    path: Path


def write_run_page(run_dir: Path) -> Path:
    """Write RUN/index.html from the files of a run, complete or not. The page loads no other file and needs no network.

    Raises:
        ValueError: a file of the run is damaged; it is named.
        OSError: the folder is not a run's, or cannot be written.
    """
    config, result, rows = read_config(run_dir), read_result(run_dir), read_rows(run_dir, "epoch")
    try:
        pictures, notes = draw_pictures(run_dir, rows, result), []
    except ImportError:
        pictures, notes = [], [NO_PLOTS]
    page = render(
        "run.html",
        title=f"{config.name}: {run_dir.name}",
        summary=summary(config, result, rows),
        facts=facts(run_dir, config, result, rows),
        folds=None,
        pictures=pictures,
        features=whole(run_dir / TEST / FEATURES, features_table),
        notes=notes,
        resume=f"lgfast train --resume {shlex.quote(str(run_dir))}" if result is None else "",
        **answered(run_dir / TEST, read_answers(run_dir / TEST), config.data.pixels),
        **settings(config),
    )
    write_text(run_dir / PAGE, page)
    return run_dir / PAGE


def write_folds_page(folder: Path, table: Table, together: Answers, answers: Path) -> Path:
    """Write FOLDER/index.html of a cross-validation.

    Args:
        table: a row a fold, in the order of its runs, FOLDER/fold-1 and so on, and one of all.
        together: for each image the answer of the run that did not train on it.
        answers: the folder with the files about them.
    """
    first = folder / "fold-1"
    config, runs = read_config(first), table.rows[:-1]
    links = {(number, 0): f"fold-{number + 1}/{PAGE}" for number in range(len(runs))}
    accuracy = 100 * float(together.is_hit.mean())
    page = render(
        "run.html",
        title=f"Cross-validation: {folder.name}",
        summary=f"{len(together.labels)} images, each tested by the run that did not train on it: {accuracy:.2f} %.",
        facts=facts(first, config, None, read_rows(first, "epoch")),
        folds=replace(table, links=links),
        pictures=[],
        features=None,
        notes=[],
        resume="",
        **answered(answers, together, config.data.pixels),
        **settings(config),
    )
    write_text(folder / PAGE, page)
    return folder / PAGE


def answered(folder: Path, answers: Answers | None, pixels: str) -> dict[str, Any]:
    """Return what a page shows of the answers, from the files about them. `pixels` is the value of data.pixels."""
    rendering = how_rendered(pixels)
    kept = [
        Picture("Confusion", "Rows are true classes, columns what they were named.", folder / "confusion.png"),
        Picture("Where it looks", f"{LOOKS} {rendering}".strip(), folder / "attention_maps.png"),
        Picture(
            "Most confident mistakes", f"What each was named, and is. {rendering}".strip(), folder / "mistakes.png"
        ),
    ]
    return {
        "scores": whole(folder / "scores.json", scores_table),
        "tested": f"{len(answers.labels)} images of {answers.about}" if answers else "",
        "results": [picture for picture in kept if picture.path.is_file()] if answers else [],
        "classes": classes_table(answers) if answers else None,
    }


def settings(config: Config) -> dict[str, Table]:
    return {"changed": settings_table(config, is_changed=True), "unchanged": settings_table(config, is_changed=False)}


def whole(path: Path, read: Callable[[Path], T]) -> T:
    """Read a file that a report made; a damaged one is named."""
    try:
        return read(path)
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}); delete it, then: lgfast report --html {path.parents[1]}"
        ) from None


def draw_pictures(run_dir: Path, rows: Sequence[Mapping[str, Any]], result: Result | None) -> list[Picture]:
    pictures = []
    if rows:
        pictures.append(Picture("Curves", "", draw_curves(rows, result, run_dir / "curves.png")))
    if distances := whole(run_dir / TEST / ATTENTION, read_attention):
        caption = "How far each head looks on test images: a dot a head, a line through their means. Small is local."
        path = draw_distances(distances, run_dir / TEST / "attention.png")
        pictures.append(Picture("Attention distance", caption, path))
    return pictures


def summary(config: Config, result: Result | None, rows: Sequence[Mapping[str, Any]]) -> str:
    if result is None:
        return f"Not finished: {int(rows[-1]['epoch']) if rows else 0} of {config.epochs} epochs."
    chosen = f"epoch {result.best_epoch}, chosen by {result.metric} on {result.selected_on}"
    return f"{result.verdict()}. {chosen[0].upper()}{chosen[1:]}; last epoch {result.last_test_top1:.2f} %."


def facts(run_dir: Path, config: Config, result: Result | None, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Say what was trained, on what hardware, and for how long."""
    root = f" in {config.data.root}" if config.data.dataset == "folder" else ""
    told = {
        "data set": f"{config.data.dataset}{root} at {config.augment.image_size} px",
        "model": config.model.name,
        "guidance": guidance(config, result),
        "teacher": teacher(config, result),
        "epochs": f"{int(rows[-1]['epoch']) if rows else 0} of {config.epochs}",
        "precision": config.precision,
    }
    if result is not None:
        told["time"] = duration(result.seconds)
    with contextlib.suppress(OSError, ValueError, AttributeError):  # the last of JSON that is no mapping
        machine = json.loads((run_dir / "environment.json").read_text())
        told["hardware"] = f"{machine.get('gpu') or machine.get('cpu')}, {machine.get('cpu_threads')} threads"
        versions = [f"{name} {machine.get(name)}" for name in ("lgfast", "commit", "torch", "timm", "python", "cuda")]
        told["versions"] = ", ".join(text for text in versions if not text.endswith("None"))
    return {name: text for name, text in told.items() if text}


def guidance(config: Config, result: Result | None) -> str:
    """Say how the student was guided, and what was saved where guidance ended early."""
    if not config.guidance.weight:
        return "none"
    text = f"weight {config.guidance.weight:g}, {config.guidance.transform}, stop {config.guidance.stop}"
    ended = result.guided_epochs if result else None
    if ended is None:
        return text
    return f"{text}; ended after epoch {ended}, {1 - ended / config.epochs:.0%} of its cost saved"


def teacher(config: Config, result: Result | None) -> str:
    if not config.needs_teacher:
        return ""
    accuracy = f", {result.teacher_test_top1:.2f} %" if result and result.teacher_test_top1 is not None else ""
    return f"{config.teacher.recipe} ({config.teacher.targets} targets, bn {config.teacher.bn}){accuracy}"


def scores_table(path: Path) -> Table | None:
    """Make a table of scores with their 95 % intervals."""
    if not path.is_file():
        return None
    found = json.loads(path.read_text())
    rows = [
        [title, *(f"{found[name][figure]:.2f}" for figure in ("value", "low", "high"))]
        for name, title in TITLES.items()
        if name in found
    ]
    return Table(["score", "value", "from", "to"], rows)


def features_table(path: Path) -> Table | None:
    """Make a table of distances to the teacher's features, with a row for each tap."""
    if not path.is_file():
        return None
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    titles = {"tap": "student's block", "teacher_stage": "teacher's stage", "distance": "distance",
              "before_training": "before training"}  # fmt: skip
    return Table(list(titles.values()), [[row[name] for name in titles] for row in rows])


def classes_table(answers: Answers) -> Table:
    columns = [
        Column("class", lambda row: row["class"]),
        Column("precision (%)", lambda row: f"{row['precision']:.2f}"),
        Column("recall (%)", lambda row: f"{row['recall']:.2f}"),
        Column("F1 (%)", lambda row: f"{row['f1']:.2f}"),
        Column("images", lambda row: str(row["support"])),
    ]
    if answers.is_multi_label:
        columns.append(Column("average precision (%)", lambda row: f"{row['average_precision']:.2f}"))
    else:
        columns.append(Column("taken for", lambda row: row["taken_for"]))
        columns.append(Column("times", lambda row: str(row["times"])))
    return Table.of(class_rows(answers), columns)


def settings_table(config: Config, is_changed: bool) -> Table:
    """Make a table of the keys that differ from the defaults, or of the others."""
    default = Config()
    pairs = [(key, get(config, key), get(default, key)) for key in valid_keys()]
    return Table(["key", "value"], [[key, str(own)] for key, own, usual in pairs if (own != usual) is is_changed])
