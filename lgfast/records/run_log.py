"""Write the log of a run: metrics.jsonl, summary.csv and TensorBoard events."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lgfast.records.events import EventFile
from lgfast.records.files import WriteError
from lgfast.records.trackers import Tracker

METRICS, SUMMARY = "metrics.jsonl", "summary.csv"
EPOCH_COLUMNS = (
    "epoch", "lr", "loss", "cls_loss", "guidance_loss", "distill_loss", "train_top1", "val_top1", "val_top5",
    "val_balanced_accuracy", "val_macro_f1", "val_map", "val_loss", "seconds",
)  # fmt: skip


class MetricsLog:
    """Writes metrics.jsonl (one object per line), summary.csv (one row per epoch), and TensorBoard events where
    installed.

    Args:
        run_dir: the run's folder.
        tensorboard: write events if the package is installed.
        trackers: services that get the same scalars.
    """

    def __init__(self, run_dir: Path, tensorboard: bool = True, trackers: Sequence[Tracker] = ()) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        self.jsonl, self.csv = run_dir / METRICS, run_dir / SUMMARY
        self.trackers: list[Tracker] = [*([EventFile(run_dir / "tensorboard")] if tensorboard else []), *trackers]

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Append one line; non-finite numbers become null, which JSON can hold."""
        row = {"kind": kind, "step": step} | {k: finite_or_none(v) for k, v in values.items()}
        append(self.jsonl, json.dumps(row) + "\n")
        scalars = {f"{kind}/{name}": value for name, value in values.items() if isinstance(value, (int, float))}
        for tracker in self.trackers:
            tracker.write(step, scalars)

    def write_epoch(self, row: dict[str, Any]) -> None:
        """Append one row; columns that an epoch does not have (no evaluation) stay empty."""
        text = io.StringIO()
        is_new = not self.csv.exists()
        columns = EPOCH_COLUMNS if is_new else header(self.csv)  # an older version's file may have fewer columns
        writer = csv.DictWriter(text, fieldnames=columns, extrasaction="ignore", lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(row)
        append(self.csv, text.getvalue())

    def position(self) -> dict[str, int]:
        """Return the files' sizes in bytes. A checkpoint stores them, so that a resumed run drops what was written
        later."""
        return {path.name: path.stat().st_size if path.exists() else 0 for path in (self.jsonl, self.csv)}

    def rewind(self, position: dict[str, int]) -> None:
        for path in (self.jsonl, self.csv):
            if path.exists():
                os.truncate(path, min(position[path.name], path.stat().st_size))
                if path.stat().st_size == 0:
                    path.unlink()

    def close(self) -> None:
        for tracker in self.trackers:
            tracker.close()


@dataclass(frozen=True)
class EpochRow:
    """A row of summary.csv."""

    epoch: int
    val_score: float | None  # percent by eval.metric on the selection images; None where the epoch was not judged
    seconds: float  # training time, without evaluation


def read_rows(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    """Read the rows of metrics.jsonl of a kind, "epoch" or "train". An incomplete last line is left out.

    Raises:
        ValueError: a line is damaged; file and line are named.
    """
    path = run_dir / METRICS
    if not path.is_file():
        return []
    lines = path.read_bytes().decode(errors="replace").splitlines(keepends=True)
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line.endswith("\n") else {}
        except ValueError as error:
            raise ValueError(f"{path} is damaged: line {number} is no row ({error}); restore it or delete it") from None
        if isinstance(row, dict) and row.get("kind") == kind:
            rows.append(row)
    return rows


def header(path: Path) -> Sequence[str]:
    """Read the names of a summary.csv's columns."""
    with path.open(newline="") as file:
        columns = next(csv.reader([file.readline(1000)]), [])
    return columns if columns[:1] == ["epoch"] else EPOCH_COLUMNS


def read_epochs(run_dir: Path, metric: str = "top1") -> list[EpochRow]:
    """Read the epochs of a run, with scores by `eval.metric`. An incomplete last line is left out: the run is writing
    it, or was killed while it did.

    Raises:
        OSError: there is no summary.csv.
        ValueError: a line is damaged; file and line are named.
    """
    path = run_dir / SUMMARY
    lines = path.read_bytes().decode(errors="replace").splitlines(keepends=True)
    reader = csv.DictReader(line for line in lines if line.endswith("\n"))
    rows = []
    try:
        if lines and "epoch" not in (reader.fieldnames or ()):
            raise ValueError("it has no column 'epoch'")
        for row in reader:
            score = float(row[f"val_{metric}"]) if row[f"val_{metric}"] else None
            rows.append(EpochRow(int(row["epoch"]), score, float(row["seconds"])))
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise ValueError(
            f"{path} is damaged: line {reader.line_num} is no row of an epoch ({error}); "
            "restore it, or delete that line, which the curve then lacks"
        ) from None
    return rows


def read_curve(run_dir: Path, metric: str = "top1") -> tuple[list[int], list[float]]:
    """Read the epochs in which a run was evaluated, and its scores (percent, on the selection images)."""
    judged = [(row.epoch, row.val_score) for row in read_epochs(run_dir, metric) if row.val_score is not None]
    return [epoch for epoch, _ in judged], [score for _, score in judged]


class SilentLog:
    """Stands for a MetricsLog on ranks that write nothing."""

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        pass

    def write_epoch(self, row: dict[str, Any]) -> None:
        pass

    def position(self) -> dict[str, int]:
        return {}

    def rewind(self, position: dict[str, int]) -> None:
        pass

    def close(self) -> None:
        pass


def finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def append(path: Path, text: str) -> None:
    """Append to a file of a run.

    Raises:
        WriteError: the file cannot be written. Its earlier content is intact; a part of the text may follow it.
    """
    try:
        with path.open("a", newline="") as file:
            file.write(text)
    except OSError as error:
        raise WriteError(f"could not write {path}: {error.strerror or error}") from error
