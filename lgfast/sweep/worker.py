"""A worker takes trials of a study, trains them in groups and reports, until none is left."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import math
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import OperationalError

from lgfast.assembly.run_folder import forget_holder
from lgfast.config import Config, replace
from lgfast.records.files import WriteError
from lgfast.records.run_log import read_curve
from lgfast.runtime.interrupt import Interrupted, InterruptFlag
from lgfast.sweep.group import Outcome, group_key, run_group
from lgfast.sweep.study import ClaimedRun, Study
from lgfast.training.lane import Lane
from lgfast.training.loop import Row

# Errors of a file that will not pass; any other error of a disk or a network may.
LASTING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)
POLL_S = 1.0  # how often an idle worker looks for new or abandoned trials


class StopFlag(InterruptFlag):
    """An interrupt flag that is also set once a time budget (seconds) is used up."""

    def __init__(self, budget: float | None = None) -> None:
        self._deadline = time.monotonic() + budget if budget is not None else math.inf
        super().__init__()

    @property
    def requested(self) -> bool:
        return self._requested or time.monotonic() >= self._deadline

    @requested.setter
    def requested(self, value: bool) -> None:
        self._requested = value

    @property
    def was_asked(self) -> bool:
        """Whether a signal came."""
        return self._requested

    @property
    def is_out_of_time(self) -> bool:
        return not self._requested and self.requested

    def left_s(self) -> float | None:
        """Seconds left of the budget; None where there is none."""
        return None if math.isinf(self._deadline) else max(0.0, self._deadline - time.monotonic())


def may_pass(error: BaseException | None) -> bool:
    """Whether an error, or its cause, comes from a disk, a network or a database, not from the run itself."""
    while error is not None:
        if isinstance(error, (WriteError, StorageInternalError, OperationalError)):
            return True
        if isinstance(error, OSError) and error.errno is not None and error.errno not in LASTING:
            return True
        error = error.__cause__
    return False


class Worker:
    """Runs the trials of a study.

    Args:
        study: a study that was joined or created, and announced.
        out: the folder for the runs.
        here: keys that this machine sets differently (data.root, device, ...); they do not change what is computed.
        interrupt: tells when to save and stop.
        on_change: called when a trial starts, reports or ends.
    """

    def __init__(
        self, study: Study, out: Path, here: dict, interrupt: InterruptFlag, on_change: Callable[[], None]
    ) -> None:
        self.study, self.out, self.here, self.interrupt, self.on_change = study, out, here, interrupt, on_change
        self.room: int | None = None  # the most trials whose group fits the memory; None: no limit met yet

    def work(self) -> None:
        """Work until every trial has ended, wherever it runs, or until interrupted."""
        while not self.interrupt.requested:
            self.study.repair()
            runs = self.study.claim(self.room)
            if runs:
                self.run(runs)
            elif self.study.is_busy():
                time.sleep(POLL_S)
            else:
                return

    def run(self, runs: list[ClaimedRun]) -> None:
        """Train the runs, in groups where they can share one. After an interrupt, unfinished runs are given back."""
        groups: dict[str, list[tuple[ClaimedRun, Config]]] = defaultdict(list)
        for run in runs:
            config = self.config_of(run)
            groups[group_key(config)].append((run, config))
        for members in groups.values():
            self.train([run for run, _ in members], [config for _, config in members])

    def config_of(self, run: ClaimedRun) -> Config:
        """Return the run's configuration: quiet, in its own folder."""
        fixed = {"run_dir": str(self.folder_of(run)), "log.print_epochs": False}
        return replace(self.study.plan.config_of(run.changes, run.seed), self.here | fixed)

    def folder_of(self, run: ClaimedRun) -> Path:
        """Return the run's folder. A lost run's folder is renamed, so that its worker cannot write into it if it was
        only frozen and wakes up."""
        names = [f"{run.setting:03d}-seed{run.seed}" + (f"-{lost + 1}" if lost else "") for lost in range(run.lost + 1)]
        *older, folder = [self.out / "runs" / name for name in names]
        if not folder.exists():
            for earlier in reversed(older):
                with contextlib.suppress(FileNotFoundError):
                    earlier.rename(folder)
                    forget_holder(folder)
                    break
        return folder

    def train(self, runs: list[ClaimedRun], configs: list[Config]) -> None:
        started = time.monotonic()
        reporters = {c.run_dir: Reporter(self.study, r, c) for r, c in zip(runs, configs, strict=True)}

        def on_epoch(lane: Lane, row: Row) -> bool:
            self.note_epoch(reporters[lane.config.run_dir].trial.number, int(row["epoch"]))
            is_losing = reporters[lane.config.run_dir].report(row)
            self.on_change()
            return is_losing

        if self.study.heartbeat is not None:
            self.study.heartbeat.epochs.clear()
        self.on_change()
        try:
            if self.interrupt.requested:
                raise Interrupted("stopped before the first step", "nothing is lost")
            outcomes = run_group(configs, self.interrupt, on_epoch)
            for run, outcome in zip(runs, outcomes, strict=True):
                if outcome.status == "complete":
                    reporters[outcome.config.run_dir].report_past()
                self.tell(run, outcome, time.monotonic() - started)
        except Interrupted:  # before the first step
            self.give_back(runs)
        except torch.OutOfMemoryError as error:
            self.make_room(runs, error)
        except Exception as error:
            self.settle(runs, error)
        self.on_change()

    def note_epoch(self, trial: int, epoch: int) -> None:
        """Tell the study how far a run is; this covers epochs that are not judged."""
        if self.study.heartbeat is not None:
            self.study.heartbeat.epochs[str(trial)] = epoch

    def settle(self, runs: list[ClaimedRun], error: Exception) -> None:
        """Settle the runs of a group after an error. An error that may pass ends this worker and gives its runs
        back."""
        try:
            own = [run for run in runs if not self.study.is_lost(run.trial)]
            if len(own) < len(runs):  # their folders were renamed, which may be the error
                print(f"{len(runs) - len(own)} runs were given to another worker, as this one stood still", flush=True)
                self.give_back(own)
                return
            if not may_pass(error):
                self.fail(own, error)
                return
            self.give_back(own)
        except (
            OSError,
            StorageInternalError,
            OperationalError,
        ) as away:  # where the study is away too, the runs count as lost
            raise error from away
        raise error

    def make_room(self, runs: list[ClaimedRun], error: torch.OutOfMemoryError) -> None:
        """Give back a group that does not fit the memory, and take half as many trials from now on. A trial that does
        not fit alone fails."""
        if len(runs) == 1:
            self.fail(runs, error)
            return
        self.room = len(runs) // 2
        self.give_back(runs)
        print(f"{len(runs)} trials at a time do not fit the GPU's memory; going on with {self.room}", flush=True)

    def give_back(self, runs: list[ClaimedRun]) -> None:
        """Give the runs back, for this worker or another one to continue."""
        for run in runs:
            self.study.fail(run.trial, "saved")

    def fail(self, runs: list[ClaimedRun], error: Exception) -> None:
        for run in runs:
            self.study.fail(run.trial, f"{type(error).__name__}: {error}")

    def tell(self, run: ClaimedRun, outcome: Outcome, seconds: float) -> None:
        trial = run.trial
        if outcome.progress is not None:
            progress = dataclasses.asdict(outcome.progress)
            result = progress | {"seconds": seconds, "run_dir": outcome.config.run_dir}
            self.study.note(trial, "result", result)
        if outcome.status == "complete" and outcome.progress is not None:
            self.study.complete(trial, outcome.progress.best_score)
        elif outcome.status == "pruned":
            self.study.prune(trial)
        else:
            self.study.fail(trial, outcome.error or "saved")


class Reporter:
    """Reports a run's scores on the selection images to its trial, those from before a resume first."""

    def __init__(self, study: Study, run: ClaimedRun, config: Config) -> None:
        self.study, self.trial, self.run_dir, self.metric = study, run.trial, Path(config.run_dir), config.eval.metric
        self._has_past = False

    def report(self, row: dict[str, float]) -> bool:
        """Report an epoch. Return True to stop the run: the pruner would end it, or another worker has it now."""
        if f"val_{self.metric}" not in row:
            return False
        if not self.report_past():
            self.study.report(self.trial, row[f"val_{self.metric}"], int(row["epoch"]))
        return self.study.is_lost(self.trial) or self.trial.should_prune()

    def report_past(self) -> bool:
        """On the first call, report all epochs in the run's files, the newest included. Return whether it was the
        first."""
        is_first, self._has_past = not self._has_past, True
        for epoch, score in zip(*read_curve(self.run_dir, self.metric), strict=True) if is_first else ():
            self.study.report(self.trial, score, epoch)
        return is_first
