"""Keep a sweep in an Optuna study: what has to run, who runs it, and what came of it.

Every trial is one run: a setting and a seed. The study holds the base configuration and the space, so that any process
that knows the study's place can join. `fill` queues what has to run, by the space. `repair` fails the trials of dead
workers and queues their runs again. Several processes may do both at once: of two live trials of one run, the one with
the lower number goes on when it is claimed.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lgfast.config import Config, from_dict, replace, to_dict
from lgfast.runtime.passwords import without_password
from lgfast.sweep.group import group_key
from lgfast.sweep.liveness import Heartbeat, Observer
from lgfast.sweep.space import Space, label


def missing(error: ImportError) -> str:
    """Say what to install, by the module that was not found."""
    name = (error.name or "optuna").partition(".")[0]
    if name == "optuna":
        return "sweeps need Optuna: pip install 'lgfast[sweep]' (or: pip install 'optuna>=5')"
    return f"sweeps need the Python module {name!r}, which Optuna imports and this Python lacks ({error})"


try:
    import optuna
    from optuna.trial import FrozenTrial, Trial, TrialState

    from lgfast.sweep.storage import open_storage
except ImportError as error:
    raise ValueError(missing(error)) from error

MAX_LOST = 3  # give a run up once its workers died this often
READY_S = 60.0  # a joining process waits this long for the plan to be written
ADOPT_S = 5.0  # a starting process waits this long for another's plan before it writes its own


@dataclass(frozen=True)
class Plan:
    """The definition of a sweep; the study stores it."""

    base: Config
    space: Space
    trials: int | None  # settings to sample; None: the grid, or as many as the budget allows
    pruner: str
    group: int  # trials per process

    def to_dict(self) -> dict[str, Any]:
        rest = {"trials": self.trials, "pruner": self.pruner, "group": self.group}
        return {"base": to_dict(self.base), "space": json.loads(json.dumps(self.space.to_dict())), **rest}

    @classmethod
    def from_dict(cls, tree: dict[str, Any]) -> Plan:
        return cls(**tree | {"base": from_dict(tree["base"]), "space": Space.from_dict(tree["space"])})

    def config_of(self, changes: dict[str, Any], seed: int) -> Config:
        return replace(self.base, changes | {"seed": seed})


@dataclass(frozen=True)
class ClaimedRun:
    """A trial that this worker has claimed: one setting with one seed."""

    trial: Trial
    setting: int
    seed: int
    changes: dict[str, Any]
    lost: int = 0  # the number of workers that died or fell silent while they ran it


class Study:
    """Access to one sweep's study; every process has its own.

    Args:
        place: journal file or Optuna URL. Its password is used, and neither shown nor stored.
        name: the study's name in that storage.
    """

    def __init__(self, place: str, name: str) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.place, self.secret_place, self.name = without_password(place), place, name
        self.storage = open_storage(place)
        self.observer = Observer()
        self.heartbeat: Heartbeat | None = None
        self.expected_workers = 1  # the number known to take part, before they have announced themselves too
        self.should_stop: Callable[[], bool] = lambda: False  # `fill` asks it between two trials

    def exists(self) -> bool:
        return self.name in optuna.get_all_study_names(self.storage)

    def create(self, plan: Plan) -> bool:
        """Write a new study without trials; return False if the storage has one of this name already."""
        try:
            self.optuna = optuna.create_study(study_name=self.name, storage=self.storage, direction="maximize")
        except optuna.exceptions.DuplicatedStudyError:
            if self.find_plan(ADOPT_S):
                return False
            self.optuna = optuna.load_study(study_name=self.name, storage=self.storage)
        self.optuna.set_user_attr("plan", plan.to_dict())
        self.use(plan)
        return True

    def join(self) -> Plan:
        """Open the existing study and return its plan."""
        plan = self.find_plan(READY_S)
        if plan is None:
            raise ValueError(f"--study: {self.place} holds no sweep named {self.name!r}; start one with --sweep")
        self.use(plan)
        return plan

    def find_plan(self, patience_s: float) -> Plan | None:
        """Return the plan of the existing study, or None if it does not appear within this time."""
        deadline = time.monotonic() + patience_s
        while True:
            if self.exists():
                self.optuna = optuna.load_study(study_name=self.name, storage=self.storage)
                if tree := self.optuna.user_attrs.get("plan"):
                    return Plan.from_dict(tree)
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.2)

    def use(self, plan: Plan) -> None:
        self.plan = plan
        self.grid = plan.space.grid() if plan.space.is_grid else None
        self.optuna.sampler = optuna.samplers.TPESampler()
        self.optuna.pruner = build_pruner(plan)

    def announce(self) -> Heartbeat:
        """Become a worker of this study, until the heartbeat is stopped."""
        self.heartbeat = Heartbeat(self.optuna).start()
        return self.heartbeat

    # ---- what has to run ---------------------------------------------------------------------------------------------

    def fill(self) -> None:
        """Queue every run of the plan that is neither queued, running nor finished."""
        by_run = self.by_run()
        trials = [trial for of_run in by_run.values() for trial in of_run if "changes" in trial.user_attrs]
        settings = {trial.user_attrs["setting"]: trial.user_attrs["changes"] for trial in trials}
        outstanding = []
        for setting in range(self.number_of_settings(settings)):
            changes = self.grid[setting] if self.grid is not None else settings.get(setting)
            seeds = self.plan.space.seeds
            for seed in seeds if changes is not None else seeds[:1]:
                if is_outstanding(by_run[setting, seed]):
                    outstanding.append((setting, seed, changes))
        for setting, seed, changes in self.in_groups(outstanding):
            if self.should_stop():  # whoever resumes queues the rest
                return
            self.queue(setting, seed, changes)

    def in_groups(self, runs: list[tuple[int, int, dict | None]]) -> list[tuple[int, int, dict | None]]:
        """Return the runs in order, with those that can share a process next to each other."""
        by_key = defaultdict(list)
        for setting, seed, changes in runs:
            by_key[self.key_of(changes, seed)].append((setting, seed, changes))
        return [run for members in by_key.values() for run in members]

    def number_of_settings(self, settings: dict[int, Any]) -> int:
        if self.grid is not None:
            return len(self.grid)
        return self.plan.trials if self.plan.trials is not None else len(settings) + self.plan.group

    def queue(self, setting: int, seed: int, changes: dict[str, Any] | None) -> None:
        """Add a waiting trial. Without changes, its setting is sampled when a worker claims it; setting 0 takes the
        base's own values."""
        attrs = {"setting": setting, "seed": seed}
        params = {key: label(value) for key, value in (changes or {}).items()}
        if changes is None and setting == 0:
            params = self.plan.space.own_values(self.plan.base)
        self.optuna.enqueue_trial(params, attrs if changes is None else attrs | {"changes": changes})

    def by_run(self) -> dict[tuple[int, int], list[FrozenTrial]]:
        """Return the trials of every run, in order of their numbers."""
        runs: dict[tuple[int, int], list[FrozenTrial]] = defaultdict(list)
        for trial in self.optuna.get_trials(deepcopy=False):
            if "setting" in trial.user_attrs:
                runs[trial.user_attrs["setting"], trial.user_attrs["seed"]].append(trial)
        return runs

    # ---- who runs it -------------------------------------------------------------------------------------------------

    def claim(self, most: int | None = None) -> list[ClaimedRun]:
        """Claim this worker's share of the waiting trials that can run as one group; return none if none waits.

        Args:
            most: the most trials that fit this worker's memory; None: as many as the plan puts in a group.
        """
        waiting = self.optuna.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        if not waiting:
            return []
        attrs = [trial.user_attrs for trial in waiting[: most or self.plan.group]]
        keys = [self.key_of(own.get("changes"), own["seed"]) for own in attrs]
        together = next((i for i, key in enumerate(keys) if key != keys[0]), len(keys))
        workers = max(self.expected_workers, self.observer.count_alive(self.optuna.user_attrs))
        share = math.ceil(len(waiting) / workers)
        runs = [self.take() for _ in range(min(share, together))]
        claimed = [run for run in runs if run is not None]
        if self.grid is None and claimed:
            self.fill()  # queue the other seeds of what was sampled just now
        return claimed

    def key_of(self, changes: dict[str, Any] | None, seed: int) -> str:
        """A key that is equal for runs that may share a process, and for all settings still to be sampled."""
        return "" if changes is None else group_key(self.plan.config_of(changes, seed))

    def take(self) -> ClaimedRun | None:
        """Claim the next waiting trial; return None if another process was faster or another trial does this run."""
        assert self.heartbeat is not None, "announce comes first"
        trial = self.optuna.ask()
        trial.set_user_attr("worker", self.heartbeat.id)
        attrs = trial.user_attrs
        if "setting" not in attrs or self.is_duplicate(trial):
            self.fail(trial, "duplicate")
            return None
        changes = self.plan.space.sample(trial, self.plan.base)
        if "changes" not in attrs:
            trial.set_user_attr("changes", changes)
        before = self.by_run()[attrs["setting"], attrs["seed"]]
        return ClaimedRun(trial, attrs["setting"], attrs["seed"], changes, reasons(before).count("lost"))

    def is_duplicate(self, trial: Trial) -> bool:
        run = trial.user_attrs["setting"], trial.user_attrs["seed"]
        return any(is_live(other) and other.number < trial.number for other in self.by_run()[run])

    def repair(self) -> list[int]:
        """Fail the running trials of dead workers and queue their runs again; return the numbers of those trials."""
        attrs, lost = self.optuna.user_attrs, []
        for trial in self.optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            worker = trial.user_attrs.get("worker")
            if worker is None and self.observer.is_fresh(f"trial {trial.number}", 0):
                continue  # claimed a moment ago
            if worker is None or not self.observer.is_alive(worker, attrs):
                self.optuna.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
                lost.append(trial.number)
        self.fill()
        return lost

    def is_busy(self) -> bool:
        """Whether any trial waits or runs."""
        return bool(self.optuna.get_trials(deepcopy=False, states=(TrialState.WAITING, TrialState.RUNNING)))

    # ---- what came of it ---------------------------------------------------------------------------------------------

    def complete(self, trial: Trial, val_score: float) -> None:
        self.optuna.tell(trial, val_score, skip_if_finished=True)

    def prune(self, trial: Trial) -> None:
        self.optuna.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)

    def fail(self, trial: Trial, reason: str) -> None:
        """End a trial without a value. Reasons are `saved` (another worker continues), `duplicate`, or the run's
        error."""
        self.note(trial, "reason", reason)
        self.optuna.tell(trial, state=TrialState.FAIL, skip_if_finished=True)

    def note(self, trial: Trial, name: str, value: Any) -> None:
        """Store a value with a trial, unless another worker has the trial now."""
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            trial.set_user_attr(name, value)

    def report(self, trial: Trial, score: float, epoch: int) -> None:
        """Report a validation accuracy, unless another worker has the trial now."""
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            trial.report(score, epoch)

    def is_lost(self, trial: Trial) -> bool:
        """Whether another worker was given the trial, because this one was silent for a while."""
        (found,) = (own for own in self.optuna.get_trials(deepcopy=False) if own.number == trial.number)
        return found.state != TrialState.RUNNING


def is_live(trial: FrozenTrial) -> bool:
    return trial.state != TrialState.FAIL


def is_outstanding(trials: list[FrozenTrial]) -> bool:
    """Whether a run has to be queued, or queued again, given its trials so far."""
    ends = reasons(trials)
    has_error = any(reason not in ("lost", "saved", "duplicate") for reason in ends)
    return not any(map(is_live, trials)) and not has_error and ends.count("lost") < MAX_LOST


def reasons(trials: list[FrozenTrial]) -> list[str]:
    """Return why trials without a value ended."""
    return [trial.user_attrs.get("reason", "lost") for trial in trials if trial.state == TrialState.FAIL]


def build_pruner(plan: Plan) -> optuna.pruners.BasePruner:
    if plan.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=plan.base.epochs // 5)
    if plan.pruner == "hyperband":
        lowest = max(1, plan.base.epochs // 9)
        return optuna.pruners.HyperbandPruner(min_resource=lowest, max_resource=plan.base.epochs)
    return optuna.pruners.NopPruner()
