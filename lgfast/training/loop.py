"""The training loop runs epochs and steps of one or several students on one stream of batches. Read this file first."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from lgfast.data.batch import Batch, BatchStream
from lgfast.guidance.teacher import TargetSource
from lgfast.runtime.interrupt import InterruptFlag
from lgfast.training.evaluation import evaluate_all
from lgfast.training.lane import Lane
from lgfast.training.stopping import StopVote

Row = dict[str, float]


def keep_going(lane: Lane, row: Row) -> bool:
    return False


class Loop:
    """Trains lanes on one stream of batches and one teacher, each to the end of its recipe.

    A run is a loop of one lane. The trials of a group are a loop of several lanes, which take turns on every batch. An
    error or a stop of one lane leaves the others alone. A lane that is ahead after a resume waits for the others.

    Args:
        lanes: students with epochs of equal length.
        batches: the batches that all of them train on.
        selection: batches that choose the best epoch (validation split, or the test set under eval.protocol=paper).
        teacher: gives targets to guided lanes; None where there is none.
        interrupt: tells when the user asks to stop.
        on_epoch: called with a lane and its epoch's row; a lane ends early where it returns True.
        watch: passes an epoch's batches on, for instance to show progress.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        batches: BatchStream,
        selection: Iterable[Batch],
        teacher: TargetSource | None,
        interrupt: InterruptFlag,
        on_epoch: Callable[[Lane, Row], bool] = keep_going,
        watch: Callable[[BatchStream], Iterable[Batch]] = iter,
    ) -> None:
        self.lanes, self.batches, self.selection, self.teacher = lanes, batches, selection, teacher
        self.on_epoch, self.watch = on_epoch, watch
        first = lanes[0]
        self.stop_vote = StopVote(interrupt, first.config.log.every_steps, first.device)

    def run(self) -> None:
        """Train until every lane has ended; `Lane.status` says how."""
        self.release_teacher()
        for lane in running(self.lanes):
            if lane.is_finished:  # its process ended between the last checkpoint and the last weights
                lane.complete()
        while lanes := running(self.lanes):
            self.run_epoch(min(lane.progress.epoch for lane in lanes))

    def run_epoch(self, epoch: int) -> None:
        """Run the steps of the lanes that stand in this epoch, then judge and save."""
        lanes = [lane for lane in running(self.lanes) if lane.progress.epoch == epoch]
        started = time.perf_counter()
        self.begin_epoch(epoch, lanes)
        for batch in self.watch(self.batches):
            self.train_batch(lanes, batch)
            if not training(lanes):
                break
        self.finish_epoch(lanes, time.perf_counter() - started)

    def begin_epoch(self, epoch: int, lanes: Sequence[Lane]) -> None:
        """Move the batches to this epoch, at the step of the lane that is furthest behind."""
        self.batches.seek(epoch, min(lane.step_in_epoch for lane in lanes))
        if self.teacher is not None and any(lane.is_guided for lane in lanes):
            self.teacher.begin_epoch(epoch)
        for lane in lanes:
            with lane.acting():
                lane.begin_epoch()

    def train_batch(self, lanes: Sequence[Lane], batch: Batch) -> None:
        """Step the lanes that stand at this batch; those ahead of them wait."""
        due = hindmost(training(lanes))
        if self.teacher is not None and any(lane.is_guided for lane in due):
            self.teacher.prepare(batch)
        for lane in due:
            with lane.acting():
                lane.train_batch(batch)
        left = training(due)
        if left and self.stop_vote.after_step(left[0].progress.step):
            for lane in left:
                with lane.acting():
                    lane.stop()

    def finish_epoch(self, lanes: Sequence[Lane], seconds: float) -> None:
        """Judge the epoch, write it down, save it, and end what is to end.

        Args:
            seconds: the time that its steps took.
        """
        for lane in running(lanes):
            with lane.acting():
                lane.read_epoch()
        scores = self.evaluate(running(lanes))
        for lane in running(lanes):
            with lane.acting():
                row = lane.finish_epoch(seconds, scores.get(lane))
                self.settle(lane, row)
        self.release_teacher()

    def release_teacher(self) -> None:
        """Free the teacher, and the images made for it, once no lane asks it for targets."""
        if self.teacher is not None and not any(lane.is_guided for lane in running(self.lanes)):
            self.teacher.release()
            self.teacher = None
            self.batches.drop_teacher_images()

    def evaluate(self, lanes: Sequence[Lane]) -> dict[Lane, Row]:
        """Evaluate the lanes whose epoch is judged on the selection images, in one pass."""
        judged = [lane for lane in lanes if lane.is_judged]
        if not judged:
            return {}
        models, first = [lane.step.model for lane in judged], judged[0]
        return dict(zip(judged, evaluate_all(models, self.selection, first.device, first.step.dtype), strict=True))

    def settle(self, lane: Lane, row: Row) -> None:
        """Save, stop or end a lane after an epoch, where one of these is due."""
        is_due, is_stopping = lane.is_checkpoint_due(), self.stop_vote.after_epoch()
        if is_stopping and not lane.is_finished:
            lane.stop()
            return
        if lane.is_finished or is_due:
            lane.save()
        is_pruned = self.on_epoch(lane, row)
        if lane.is_finished:
            lane.complete()
        elif is_pruned:
            lane.end("pruned")


def running(lanes: Iterable[Lane]) -> list[Lane]:
    """Return the lanes that have not ended."""
    return [lane for lane in lanes if lane.status == "running"]


def training(lanes: Iterable[Lane]) -> list[Lane]:
    """Return the lanes that still have steps of the epoch to take."""
    return [lane for lane in running(lanes) if not lane.is_epoch_over]


def hindmost(lanes: Sequence[Lane]) -> list[Lane]:
    """Return the lanes that have taken the fewest steps."""
    fewest = min((lane.progress.step for lane in lanes), default=0)
    return [lane for lane in lanes if lane.progress.step == fewest]
