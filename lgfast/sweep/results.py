"""Read and write the results of a sweep: runs, settings with mean and spread over seeds, the winner and its test."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lgfast.config import dump_yaml
from lgfast.evaluate import evaluate_checkpoint
from lgfast.records.files import write_text
from lgfast.reports.spread import Spread
from lgfast.reports.table import write_csv
from lgfast.sweep.liveness import PREFIX
from lgfast.sweep.study import Study, is_live, is_outstanding

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


@dataclass(frozen=True)
class RunRow:
    """One run: a setting with one seed."""

    setting: int
    seed: int
    changes: dict[str, Any] | None  # None: not sampled yet
    state: str  # waiting, running, complete, pruned, failed, saved, lost
    val_score: float | None  # the best epoch's so far, in percent
    epoch: int  # epochs done, as far as known
    seconds: float | None
    run_dir: str
    error: str
    curve: dict[int, float]  # epoch -> validation accuracy


@dataclass(frozen=True)
class SettingRow:
    """A setting over its seeds."""

    setting: int
    changes: dict[str, Any]
    states: tuple[str, ...]
    val_score: Spread  # over the complete seeds
    so_far: float | None  # the best of the other seeds, which have seen fewer epochs

    @property
    def is_complete(self) -> bool:
        return all(state == "complete" for state in self.states)

    @property
    def seeds(self) -> int:
        """The number of complete seeds."""
        return self.states.count("complete")

    @property
    def score(self) -> float:
        """`best_known`, for settings that have one."""
        assert self.best_known is not None
        return self.best_known

    @property
    def best_known(self) -> float | None:
        """The mean of the complete runs, else the best score so far; plots show the setting there."""
        return self.so_far if self.val_score.mean is None else self.val_score.mean


def read_runs(study: Study) -> list[RunRow]:
    """Return every run of the study, in order."""
    rows, known = [], study.optuna.user_attrs
    for (setting, seed), trials in sorted(study.by_run().items()):
        trial = next((trial for trial in trials if is_live(trial)), trials[-1])
        attrs, result = trial.user_attrs, trial.user_attrs.get("result", {})
        state, error = trial.state.name.lower(), ""
        if state == "fail":
            reason = attrs.get("reason", "lost")
            state = reason if reason in ("saved", "lost") else "failed"
            error = "" if is_outstanding(trials) else reason
        curve = {int(epoch): value for epoch, value in sorted(trial.intermediate_values.items())}
        best = trial.value if trial.value is not None else max(curve.values(), default=None)
        epoch = max(epochs_told(trial, known), *curve, 0)
        seconds, run_dir = result.get("seconds"), result.get("run_dir", "")
        rows.append(RunRow(setting, seed, attrs.get("changes"), state, best, epoch, seconds, run_dir, error, curve))
    return rows


def epochs_told(trial: FrozenTrial, attrs: dict[str, Any]) -> int:
    """Return the number of epochs in the last beat of the trial's worker."""
    return attrs.get(f"{PREFIX}{trial.user_attrs.get('worker')}", {}).get("epochs", {}).get(str(trial.number), 0)


def by_setting(runs: Sequence[RunRow], seeds: int) -> list[SettingRow]:
    """Group runs into settings. Those with complete runs come first, by their mean; then the others by their best so
    far.

    Args:
        seeds: how many each setting has, so that one whose other seeds are not queued yet is not complete.
    """
    groups = defaultdict(list)
    for run in runs:
        if run.changes is not None:
            groups[run.setting].append(run)
    rows = []
    for setting, members in groups.items():
        known = [(run.state == "complete", run.val_score) for run in members if run.val_score is not None]
        mean = Spread.of(score for is_complete, score in known if is_complete)
        so_far = max((score for is_complete, score in known if not is_complete), default=None)
        states = tuple(run.state for run in members) + ("waiting",) * (seeds - len(members))
        rows.append(SettingRow(setting, members[0].changes or {}, states, mean, so_far))
    return sorted(rows, key=lambda row: (row.val_score.mean is None, -(row.best_known or 0), row.setting))


def find_winner(settings: Sequence[SettingRow]) -> SettingRow | None:
    """Return the setting with the best validation mean among those whose every seed is complete, or None."""
    return next((row for row in settings if row.is_complete), None)


def write_runs(runs: Sequence[RunRow], keys: Sequence[str], path: Path) -> None:
    """Write sweep.csv with a line for each run."""
    names = ("state", "val_score", "epoch", "seconds", "run_dir", "error")
    rows = []
    for run in runs:
        changes = {key: (run.changes or {}).get(key) for key in keys}
        told = {name: getattr(run, name) for name in names}
        rows.append({"setting": run.setting, "seed": run.seed} | changes | told)
    write_csv(path, rows, ["setting", "seed", *keys, *names])


def write_best(study: Study, winner: SettingRow, path: Path) -> None:
    """Write best.yaml, the winner's configuration with its first seed, for --config."""
    config = study.plan.config_of(winner.changes, study.plan.space.seeds[0])
    write_text(path, dump_yaml(dataclasses.replace(config, run_dir="")))


def measure_winner(
    study: Study, winner: SettingRow, runs: Sequence[RunRow], root: str | None, device: str
) -> dict | None:
    """Measure the winner's test accuracy once per study, which keeps it. Return None if the weights are elsewhere."""
    if known := test_of(study, winner):
        return known
    folders = [run.run_dir for run in runs if run.setting == winner.setting]
    if not all(Path(folder).is_dir() for folder in folders):
        return None
    top1 = [evaluate_checkpoint(folder, root=root, device=device)["top1"] for folder in folders]
    mean, spread = Spread.of(top1)
    test = {"setting": winner.setting, "top1": top1, "mean": mean, "spread": spread}
    study.optuna.set_user_attr("test", test)
    return test


def test_of(study: Study, winner: SettingRow) -> dict | None:
    """Return what `measure_winner` found, if it measured this setting; else None."""
    known = study.optuna.user_attrs.get("test")
    return known if known and known["setting"] == winner.setting else None


def write_results(study: Study, out: Path) -> tuple[list[RunRow], list[SettingRow]]:
    """Write sweep.csv, best.yaml and results.json in `out` anew."""
    runs = read_runs(study)
    settings = by_setting(runs, len(study.plan.space.seeds))
    write_runs(runs, [axis.key for axis in study.plan.space.axes], out / "sweep.csv")
    winner = find_winner(settings)
    if winner:
        write_best(study, winner, out / "best.yaml")
    tree = {"settings": list(map(json_row, settings)), "test": study.optuna.user_attrs.get("test")}
    write_text(out / "results.json", json.dumps(tree, indent=2) + "\n")
    return runs, settings


def json_row(row: SettingRow) -> dict[str, Any]:
    """Return the setting's entry of results.json."""
    found = {"mean": row.val_score.mean, "spread": row.val_score.deviation, "seeds": row.seeds, "so_far": row.so_far}
    return {"setting": row.setting, "changes": row.changes, "states": row.states} | found
