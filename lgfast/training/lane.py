"""A lane carries one student through a loop: its step, progress, files and random numbers, and how it ended."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lgfast.config import Config
from lgfast.data.batch import Batch, BatchStream
from lgfast.guidance.stopping import GuidanceStop
from lgfast.optim.build import set_learning_rate
from lgfast.optim.schedule import learning_rate
from lgfast.records.files import WriteError
from lgfast.records.run_log import METRICS, SUMMARY, MetricsLog, SilentLog
from lgfast.runtime import ranks
from lgfast.runtime.interrupt import Interrupted
from lgfast.step import TrainStep
from lgfast.step.meters import MeterReading, TrainMeter
from lgfast.training.console import Pace, epoch_message, guidance_message, has_line, progress_bar
from lgfast.training.divergence import NonFiniteLossError, remedy
from lgfast.training.random_state import RandomState
from lgfast.training.saving import Progress, RunSaver, SilentSaver

Status = Literal["running", "complete", "pruned", "saved", "failed"]


@dataclass(frozen=True)
class LogLine:
    """A line of metrics.jsonl whose numbers may still be on their way from the GPU."""

    step: int
    lr: float
    reading: MeterReading


class Lane:
    """One student in a loop. The loop tells it when to step; the lane knows what is due after each step.

    Args:
        config: the run's configuration.
        step: trains the student on one batch.
        steps_per_epoch: the number of batches in an epoch.
        saver: writes checkpoints and weights.
        log: writes the metrics.
        guidance_stop: decides when guidance ends; None: never.
        random_state: the state of this lane's random numbers, where several lanes share a process; None: it is alone.
    Attributes:
        status: running; then complete, pruned (the loop's caller ended it), saved (interrupted) or failed.
        error: the reason why a lane is saved or failed.
        scores: the present weights' scores on the selection images; None where these weights were not judged.
    """

    def __init__(
        self,
        config: Config,
        step: TrainStep,
        steps_per_epoch: int,
        saver: RunSaver | SilentSaver,
        log: MetricsLog | SilentLog,
        random_state: RandomState | None = None,
        guidance_stop: GuidanceStop | None = None,
    ) -> None:
        self.config, self.step, self.steps_per_epoch = config, step, steps_per_epoch
        self.saver, self.log, self.random_state, self.guidance_stop = saver, log, random_state, guidance_stop
        self.run_dir = Path(config.run_dir)
        self.device = next(step.student.parameters()).device
        self.progress = Progress()
        self.pace = Pace(min(config.epochs * steps_per_epoch, config.max_steps or sys.maxsize))
        self.status: Status = "running"
        self.error: Exception | None = None
        self.scores: dict[str, float] | None = None
        self.line: LogLine | None = None  # a line that is begun and not yet written

    # ---- where it stands ---------------------------------------------------------------------------------------------

    @property
    def is_guided(self) -> bool:
        """Whether its step asks the teacher for targets."""
        return self.step.teacher is not None

    @property
    def step_in_epoch(self) -> int:
        return self.progress.step - self.progress.epoch * self.steps_per_epoch

    @property
    def has_reached_max_steps(self) -> bool:
        return 0 < self.config.max_steps <= self.progress.step

    @property
    def is_epoch_over(self) -> bool:
        return self.step_in_epoch >= self.steps_per_epoch or self.has_reached_max_steps

    @property
    def is_finished(self) -> bool:
        return self.progress.epoch >= self.config.epochs or self.has_reached_max_steps or self.has_lost_patience

    @property
    def has_lost_patience(self) -> bool:
        """Whether `eval.patience` epochs have brought no better one; known after epochs that are judged."""
        patience, best, epoch = self.config.eval.patience, self.progress.best_epoch, self.progress.epoch
        return 0 < patience <= epoch - best and best > 0 and epoch % self.config.eval.every_epochs == 0

    @property
    def is_judged(self) -> bool:
        """Whether the epoch that now ends is evaluated: every `eval.every_epochs`-th and the last are."""
        done = self.progress.epoch + 1
        is_last = done == self.config.epochs or self.has_reached_max_steps
        return is_last or done % self.config.eval.every_epochs == 0

    # ---- what it does ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def acting(self) -> Iterator[None]:
        """Work within it uses this lane's random numbers; an error of its own ends only this lane."""
        with self.random_state.in_use() if self.random_state else contextlib.nullcontext():
            try:
                yield
            except WriteError:  # a full disk concerns all lanes
                raise
            except ValueError as error:
                self.end("failed", error)

    def begin_epoch(self) -> None:
        self.scores = None
        self.step.student.train()
        self.set_lr()

    def train_batch(self, batch: Batch) -> None:
        """Take one step, and do what is due after it. Only a checkpoint waits for the step itself."""
        if self.config.optim.per_step:
            self.set_lr()
        self.step(batch)
        self.progress.step += 1
        self.log_step()
        every = self.config.log.save_every_steps
        if every and self.progress.step % every == 0 and not self.is_epoch_over:  # the end of an epoch saves anyway
            self.save()

    def log_step(self) -> None:
        """Begin a line of the log where one is due; write the line before once its numbers are there."""
        if self.progress.step % self.config.log.every_steps == 0:
            line = LogLine(self.progress.step, self.lr, self.step.meter.start_read(TrainMeter.WINDOW))
            self.step.meter.reset(TrainMeter.WINDOW)
            self.write_line()
            self.line = line
        if self.is_line_known():
            self.write_line()

    def read_epoch(self) -> None:
        """Wait for the epoch's sums; refuse a broken loss before it is evaluated."""
        self.write_line()
        reading = self.step.meter.start_read(TrainMeter.EPOCH)
        self.check_finite(reading, self.lr)
        self.means = reading.means()
        self.step.meter.reset(TrainMeter.EPOCH)

    def finish_epoch(self, seconds: float, scores: dict[str, float] | None) -> dict[str, float]:
        """Remember the best epoch and write this epoch's rows.

        Args:
            seconds: the time that the epoch's steps took.
            scores: what `evaluate` returned for the selection images; None where the epoch is not judged.
        Returns:
            The epoch's row of summary.csv.
        """
        self.progress.epoch += 1
        self.scores = scores
        row = {"epoch": self.progress.epoch, "lr": self.lr} | self.means
        if scores is not None:
            self.judge(scores)
            row |= {f"val_{name}": value for name, value in scores.items() if name != "images"}
        images = self.steps_per_epoch * self.config.data.batch_size
        self.log.write("epoch", self.progress.step, row | {"seconds": seconds, "images_per_s": images / seconds})
        self.log.write_epoch(row | {"seconds": round(seconds, 3)})
        is_shown = self.config.log.print_epochs and has_line(self.progress.epoch, self.config.epochs)
        if is_shown and ranks.is_writer():
            left_s = self.pace.left_s(self.progress.step)
            line = epoch_message(self.config.name, self.config.epochs, row, seconds, left_s, self.config.eval.metric)
            print(line, flush=True)
        self.end_guidance_if_due()
        return row

    def end_guidance_if_due(self) -> None:
        """Record the epoch's guidance loss; go on without guidance where the rule says so."""
        if self.guidance_stop is None or not self.step.student.is_guided:
            return
        self.guidance_stop.append(self.means["guidance_loss"])
        self.progress.guidance_losses = self.guidance_stop.losses
        if self.guidance_stop.is_over() and self.progress.epoch < self.config.epochs:
            self.progress.guided_epochs = self.progress.epoch
            self.step.end_guidance()
            if self.config.log.print_epochs and ranks.is_writer():
                print(guidance_message(self.config.name, self.progress.epoch, self.config.epochs), flush=True)

    def judge(self, scores: dict[str, float]) -> None:
        """Keep the weights if this epoch is the best so far."""
        score = scores[self.config.eval.metric]
        if score > self.progress.best_score:
            self.progress.best_score, self.progress.best_top1 = score, scores["top1"]
            self.progress.best_epoch = self.progress.epoch
            self.saver.keep_best(self.progress)

    def set_lr(self) -> None:
        """Set the learning rate of the next step."""
        epochs = float(self.progress.epoch)
        if self.config.optim.per_step:
            epochs += self.step_in_epoch / self.steps_per_epoch
        self.lr = learning_rate(self.config.optim, epochs, self.config.epochs)
        set_learning_rate(self.step.optimizer, self.lr)

    def watched(self, batches: BatchStream) -> Iterable[Batch]:
        """Pass on the batches of this epoch, and show the progress."""
        title = f"{self.config.name}  epoch {self.progress.epoch + 1}/{self.config.epochs}"
        return progress_bar(batches, title, self.progress.step, self.pace, self.config.log.print_epochs)

    # ---- its log lines -----------------------------------------------------------------------------------------------

    def write_line(self) -> None:
        """Wait for the numbers of the line that is begun, and write it; raise instead if the loss had broken by
        then."""
        line, self.line = self.line, None
        if line is not None:
            self.check_finite(line.reading, line.lr)
            self.log.write("train", line.step, line.reading.means() | {"lr": line.lr})

    def is_line_known(self) -> bool:
        """Whether a line is begun and its numbers are there. Several ranks must find at the same step that the loss
        broke. On GPUs, where numbers come sooner on some ranks, they wait for the next log step."""
        is_agreed = ranks.world() == 1 or self.device.type == "cpu"
        return self.line is not None and is_agreed and self.line.reading.is_done()

    def check_finite(self, reading: MeterReading, lr: float) -> None:
        bad = reading.first_bad_step()
        if bad is not None:
            self.saver.write_best()
            newest = self.saver.newest()
            kept = f"the last good checkpoint is {newest}" if newest else "there is no checkpoint yet"
            raise NonFiniteLossError(
                f"the loss is not finite at step {bad} (learning rate {lr:.3g}); {kept}; {remedy(self.config)}"
            )

    # ---- saving, continuing and ending -------------------------------------------------------------------------------

    def is_checkpoint_due(self) -> bool:
        """Whether the end of this epoch is saved; all ranks agree."""
        return ranks.any_rank(self.saver.age_s() >= self.config.log.save_every_s, self.device)

    def save(self) -> Path:
        """Write a checkpoint from which the run continues exactly."""
        self.write_line()
        self.check_finite(self.step.meter.start_read(TrainMeter.WINDOW), self.lr)
        return self.saver.save(self.progress, self.log.position())

    def resume(self) -> bool:
        """Continue from the newest checkpoint; return False where there is none."""
        found = self.saver.resume()
        if found is None:
            self.log.rewind({METRICS: 0, SUMMARY: 0})
            return False
        self.progress, log_position = found
        if self.guidance_stop is not None:
            self.guidance_stop.losses = self.progress.guidance_losses
        if self.progress.guided_epochs is not None:
            self.step.end_guidance()
        self.log.rewind(log_position)
        return True

    def stop(self) -> None:
        """Save and end; `--resume` continues the run."""
        way_on = f"continue with: python -m lgfast.train --resume {self.run_dir}"
        self.end("saved", Interrupted(f"stopped and saved as {self.save()}", way_on))

    def complete(self) -> None:
        """Write the last weights and end."""
        self.saver.write_last(self.progress)
        self.end("complete")

    def end(self, status: Status, error: Exception | None = None) -> None:
        self.status, self.error = status, error
        self.log.close()

    def raise_error(self) -> None:
        """Raise the error that ended the lane early, if any."""
        if self.error is not None:
            raise self.error
