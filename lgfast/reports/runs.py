"""Read run folders back: what each is and how far it came. Runs that differ only in their seed are one setting."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lgfast.config import FREE_ON_RESUME, digest, to_dict
from lgfast.records.result import Result, read_result
from lgfast.records.run_config import flatten, read_config
from lgfast.records.run_log import SUMMARY, EpochRow, read_epochs
from lgfast.reports.curves import Curve


@dataclass(frozen=True)
class RunRecord:
    """What one run folder holds; accuracies are in percent."""

    folder: Path
    seed: int
    keys: dict[str, Any]  # dotted key -> value, for keys that bear on the result, without the seed
    epochs: list[EpochRow]  # the epochs done so far
    is_trained: bool  # whether it reached its last epoch; a sweep's trial is not tested after it
    result: Result | None

    @property
    def curve(self) -> Curve:
        judged = [row for row in self.epochs if row.val_score is not None]
        return [row.epoch for row in judged], [row.val_score for row in judged if row.val_score is not None]

    @property
    def val_score(self) -> float | None:
        """Score of its best epoch so far, on the selection images."""
        return max(self.curve[1], default=None)

    @property
    def seconds(self) -> float:
        """The time of its epochs in all sessions, or of its last session with evaluation and test if that is longer."""
        return max(sum(row.seconds for row in self.epochs), self.result.seconds if self.result else 0.0)

    def figure(self, name: str) -> float | None:
        """Return val_score, test_top1 or last_test_top1; None if the run is not at its end, or was not tested."""
        source = self if name == "val_score" else self.result
        return getattr(source, name) if self.is_trained and source is not None else None


@dataclass(frozen=True)
class Setting:
    """Runs that differ only in their seed."""

    changes: dict[str, Any]  # the keys in which settings differ
    runs: list[RunRecord]

    @property
    def name(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.changes.items()) or "all runs"

    @property
    def folders(self) -> str:
        """The names of its folders as one, e.g. a-seed* for a-seed1 and a-seed2."""
        names = sorted({run.folder.name for run in self.runs})
        if len(names) == 1:
            return names[0]
        common = os.path.commonprefix(names)  # noqa: RUF071 - of characters is what is meant
        return f"{common}*" if common else f"{names[0]} and {len(names) - 1} more"

    def values(self, figure: str) -> list[float]:
        """Return the figure of every run that has it; see `RunRecord.figure`."""
        return [value for run in self.runs if (value := run.figure(figure)) is not None]


def read_run(folder: Path) -> RunRecord:
    """Read a run from its folder, complete or not.

    Raises:
        ValueError: one of its files is damaged; it is named.
    """
    config = read_config(folder)
    keys = flatten(to_dict(config))
    telling = {key: value for key, value in keys.items() if key != "seed" and not key.startswith(FREE_ON_RESUME)}
    epochs = read_epochs(folder, config.eval.metric) if (folder / SUMMARY).is_file() else []
    result = read_result(folder)
    is_at_end = bool(epochs) and epochs[-1].epoch >= config.epochs
    is_trained = result is not None or is_at_end or (folder / "last.safetensors").is_file()
    return RunRecord(folder, config.seed, telling, epochs, is_trained, result)


def read_hardware(folder: Path | str) -> str | None:
    """Read from environment.json what hardware a run used; None where the file is missing or cannot be read."""
    try:
        told = json.loads((Path(folder) / "environment.json").read_text())
        where = told["gpu"] or f"{told.get('cpu') or told['platform']}, {told['cpu_threads']} threads"
        return f"{where}; torch {told['torch']}, lgfast {told['lgfast']}"
    except (OSError, ValueError, KeyError, TypeError):
        return None


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """Find run folders among and below these folders (a sweep's lie below it), each once; files are passed over."""
    found = []
    for folder in folders:
        if not folder.exists():
            raise ValueError(f"{folder}: no such folder; give folders of runs, as runs/*")
        if folder.is_dir():
            found += sorted(path.parent for path in folder.rglob("config.yaml"))
    if not found:
        raise ValueError(f"no run (a folder with a config.yaml) in {', '.join(map(str, folders))}")
    return list(dict.fromkeys(found))


def group(runs: Sequence[RunRecord]) -> list[Setting]:
    """Group runs into settings, in the order of their first run."""
    differing = [key for key in runs[0].keys if any(run.keys.get(key) != runs[0].keys[key] for run in runs)]
    members: dict[str, list[RunRecord]] = {}
    for run in runs:
        members.setdefault(digest(run.keys), []).append(run)
    return [Setting({key: group[0].keys[key] for key in differing}, group) for group in members.values()]
