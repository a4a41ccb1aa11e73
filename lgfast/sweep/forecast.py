"""Estimate how long a sweep still takes, from the epochs that its runs report."""

from __future__ import annotations

import time
from collections.abc import Sequence

from lgfast.sweep.results import RunRow
from lgfast.sweep.study import Plan

UNDER_WAY = ("waiting", "running", "saved")


class Forecast:
    """Estimates the time left of all workers together, from their progress since this process first saw one advance.

    The runs of a group report one after another, then none for a while. So the pace is updated only when the run that
    advanced first advances again: it then covers whole epochs.

    Args:
        plan: of the sweep.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._epochs: dict[tuple[int, int], int] | None = None  # of every run, when last read
        self._leader: tuple[int, int] | None = None  # the run whose next epoch updates the pace
        self._start = (0, 0.0)  # epochs of all runs and time, when the first leader advanced
        self._pace: tuple[float, float] | None = None  # epochs a second, and the time of that update

    def left_s(self, runs: Sequence[RunRow]) -> float | None:
        """Return the seconds until the last run ends, if none is pruned; None while no pace is known."""
        self.look(runs, time.monotonic())
        left = self.epochs_left(runs)
        if left is None or self._pace is None:
            return None
        pace, at = self._pace
        return max(0.0, left / pace - (time.monotonic() - at))

    def look(self, runs: Sequence[RunRow], now: float) -> None:
        epochs = {(run.setting, run.seed): run.epoch for run in runs}
        before, self._epochs = self._epochs, epochs
        advanced = [run for run, epoch in epochs.items() if before is not None and epoch > before.get(run, 0)]
        done = sum(epochs.values())
        if self._leader in advanced and done > self._start[0]:
            self._pace = (done - self._start[0]) / (now - self._start[1]), now
        if advanced and self._leader is None:
            self._start = done, now
        ended = {(run.setting, run.seed) for run in runs if run.state not in UNDER_WAY}
        if advanced and (self._leader is None or self._leader in ended):
            self._leader = next((run for run in advanced if run not in ended), self._leader)

    def epochs_left(self, runs: Sequence[RunRow]) -> int | None:
        """Count the epochs left, of queued runs and those to be queued; None where a budget or a number of steps is the
        end."""
        plan = self.plan
        settings = len(plan.space.grid()) if plan.space.is_grid else plan.trials
        if plan.base.max_steps or settings is None:
            return None
        unborn = settings * len(plan.space.seeds) - len(runs)
        lengths = [(run.changes or {}).get("epochs", plan.base.epochs) for run in runs if run.state in UNDER_WAY]
        done = sum(run.epoch for run in runs if run.state in UNDER_WAY)
        return unborn * plan.base.epochs + sum(lengths) - done
