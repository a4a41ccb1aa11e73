"""How long a sweep still takes, judged by the epochs that its runs report."""

from __future__ import annotations

import time
from collections.abc import Sequence

from lgfast.sweep.results import RunRow
from lgfast.sweep.study import Plan

UNDER_WAY = ("waiting", "running", "saved")


class Forecast:
    """Of all workers together, from what they did since this process first saw one advance.

    Runs of a group report one after another, and then long nothing. The pace is taken anew only when the run that
    advanced first does so again, so that it is always over whole epochs.

    Args:
        plan: of the sweep.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._epochs: dict[tuple[int, int], int] | None = None  # of every run, as it was looked at last
        self._leader: tuple[int, int] | None = None  # the run whose advance is waited for
        self._start = (0, 0.0)  # epochs of all runs and time, when the first leader advanced
        self._pace: tuple[float, float] | None = None  # epochs a second, and when that was found

    def left_s(self, runs: Sequence[RunRow]) -> float | None:
        """Seconds until the last run ends if none is pruned; None while that is not known."""
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
        """Of runs queued and still to be queued; None where the sweep has no end but its budget, or steps end a run."""
        plan = self.plan
        settings = len(plan.space.grid()) if plan.space.is_grid else plan.trials
        if plan.base.max_steps or settings is None:
            return None
        unborn = settings * len(plan.space.seeds) - len(runs)
        lengths = [(run.changes or {}).get("epochs", plan.base.epochs) for run in runs if run.state in UNDER_WAY]
        done = sum(run.epoch for run in runs if run.state in UNDER_WAY)
        return unborn * plan.base.epochs + sum(lengths) - done
