"""What came of a sweep: runs, settings with mean and spread over seeds, the winner and its test."""

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
    val_score: float | None  # best so far, percent
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
    val_score: Spread  # over the seeds that are complete
    so_far: float | None  # the best of those that are not, which have seen fewer epochs

    @property
    def is_complete(self) -> bool:
        return all(state == "complete" for state in self.states)

    @property
    def seeds(self) -> int:
        """How many are complete."""
        return self.states.count("complete")

    @property
    def score(self) -> float:
        """`best_known` of a setting that has it."""
        assert self.best_known is not None
        return self.best_known

    @property
    def best_known(self) -> float | None:
        """Mean of the complete runs, else the best so far: where to put the setting while that is all there is."""
        return self.so_far if self.val_score.mean is None else self.val_score.mean


def read_runs(study: Study) -> list[RunRow]:
    """Every run of the study, in order."""
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
    """Epochs that the trial's worker has done, as its last sign of life says."""
    return attrs.get(f"{PREFIX}{trial.user_attrs.get('worker')}", {}).get("epochs", {}).get(str(trial.number), 0)


def by_setting(runs: Sequence[RunRow], seeds: int) -> list[SettingRow]:
    """Settings by the mean of their complete runs, best first; then those without one by their best so far, then the
    rest.

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
    """The best setting on validation among those whose every seed is complete."""
    return next((row for row in settings if row.is_complete), None)


def write_runs(runs: Sequence[RunRow], keys: Sequence[str], path: Path) -> None:
    """sweep.csv: one line per run."""
    names = ("state", "val_score", "epoch", "seconds", "run_dir", "error")
    rows = []
    for run in runs:
        changes = {key: (run.changes or {}).get(key) for key in keys}
        told = {name: getattr(run, name) for name in names}
        rows.append({"setting": run.setting, "seed": run.seed} | changes | told)
    write_csv(path, rows, ["setting", "seed", *keys, *names])


def write_best(study: Study, winner: SettingRow, path: Path) -> None:
    """best.yaml: the winner's configuration with its first seed, for --config."""
    config = study.plan.config_of(winner.changes, study.plan.space.seeds[0])
    write_text(path, dump_yaml(dataclasses.replace(config, run_dir="")))


def measure_winner(
    study: Study, winner: SettingRow, runs: Sequence[RunRow], root: str | None, device: str
) -> dict | None:
    """Test accuracy of the winner's runs; measured once per study and kept in it. None if the weights are elsewhere."""
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
    """What `measure_winner` found, if it was this setting that it measured."""
    known = study.optuna.user_attrs.get("test")
    return known if known and known["setting"] == winner.setting else None


def write_results(study: Study, out: Path) -> tuple[list[RunRow], list[SettingRow]]:
    """Bring sweep.csv, best.yaml and results.json in `out` up to date."""
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
    """As results.json has it."""
    found = {"mean": row.val_score.mean, "spread": row.val_score.deviation, "seeds": row.seeds, "so_far": row.so_far}
    return {"setting": row.setting, "changes": row.changes, "states": row.states} | found
