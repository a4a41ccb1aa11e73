"""The training loop: steps, epochs, log lines, stops. The first file to read."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lgfast.config import Config
from lgfast.data.batch import Batch, BatchStream
from lgfast.guidance import GuidedStudent
from lgfast.optim.build import set_learning_rate
from lgfast.optim.schedule import learning_rate
from lgfast.records.run_log import MetricsLog, SilentLog
from lgfast.runtime import ranks
from lgfast.runtime.interrupt import Interrupted, InterruptFlag
from lgfast.step import TrainStep
from lgfast.step.meters import MeterReading, TrainMeter
from lgfast.step.reading import Reading
from lgfast.training.console import Pace, epoch_message, progress_bar
from lgfast.training.evaluation import evaluate
from lgfast.training.saving import Progress, RunSaver


class NonFiniteLossError(ValueError):
    """The loss became NaN or infinite; the last good checkpoint is kept."""


@dataclass(frozen=True)
class LogLine:
    """A line of metrics.jsonl whose numbers may still be on their way."""

    step: int
    lr: float
    reading: MeterReading


class Trainer:
    """Trains one student to the end of its recipe.

    Args:
        config: the run's configuration.
        run_dir: folder for metrics and checkpoints.
        student: what is trained.
        step: trains it on one batch.
        train_loader: the batches of an epoch.
        select_loader: images that choose the best epoch (validation split, or the test set under eval.protocol=paper).
        metadata: written into every weights file (model, class names, dataset).
        interrupt: tells when the user asked to stop.
    """

    def __init__(
        self,
        config: Config,
        run_dir: Path,
        student: GuidedStudent,
        step: TrainStep,
        train_loader: BatchStream,
        select_loader: Iterable[Batch],
        metadata: dict[str, Any],
        interrupt: InterruptFlag,
    ) -> None:
        self.config, self.run_dir, self.student, self.step = config, run_dir, student, step
        self.train_loader, self.select_loader, self.interrupt = train_loader, select_loader, interrupt
        self.device = next(student.parameters()).device
        self.saver = RunSaver(run_dir, student, step, train_loader, metadata, config.log.keep_checkpoints)
        self.log = MetricsLog(run_dir, config.log.tensorboard) if ranks.is_writer() else SilentLog()
        self.progress = Progress()
        self.pace = Pace(min(config.epochs * len(train_loader), config.max_steps or sys.maxsize))
        self.line: LogLine | None = None  # begun and not yet written
        self.vote: Reading | None = None  # whether any rank was asked to stop by the last log step

    @property
    def meter(self) -> TrainMeter:
        return self.step.meter

    def fit(self) -> Progress:
        """Train until the last epoch or `max_steps`; on interruption save and raise `Interrupted`."""
        while not self.is_finished():
            started = time.perf_counter()
            self.begin_epoch()
            for batch in self.watched_batches():
                self.train_batch(batch)
                if self.epoch_is_over():
                    break
            self.finish_epoch(time.perf_counter() - started)
        self.finish()
        return self.progress

    def watched_batches(self) -> Iterable[Batch]:
        """The batches of this epoch, shown as they are taken."""
        title = f"{self.config.name}  epoch {self.progress.epoch + 1}/{self.config.epochs}"
        has_lines = self.config.log.print_epochs
        return progress_bar(self.train_loader, title, self.progress.step, self.pace, has_lines)

    def begin_epoch(self) -> None:
        """Start the pass over the training images, or go on with it after a resume."""
        self.student.train()
        self.train_loader.seek(self.progress.epoch, self.step_in_epoch())
        self.step.begin_epoch(self.progress.epoch)
        self.set_lr()

    def train_batch(self, batch: Batch) -> None:
        """One step, and what is due after it."""
        self.step(batch)
        self.progress.step += 1
        self.after_step(self.step_in_epoch() == len(self.train_loader))
        if self.config.optim.per_step and not self.epoch_is_over():
            self.set_lr()

    def step_in_epoch(self) -> int:
        return self.progress.step - self.progress.epoch * len(self.train_loader)

    def epoch_is_over(self) -> bool:
        return self.step_in_epoch() >= len(self.train_loader) or self.reached_max_steps()

    def is_finished(self) -> bool:
        return self.progress.epoch >= self.config.epochs or self.reached_max_steps()

    def finish(self) -> None:
        """Write the last weights and close the files."""
        self.saver.write_last(self.progress)
        self.log.close()

    def after_step(self, is_last: bool) -> None:
        """Log, save and stop where due. Only a checkpoint waits for the step itself."""
        step, log = self.progress.step, self.config.log
        if step % log.every_steps == 0:
            line = LogLine(step, self.lr, self.meter.start_read(TrainMeter.WINDOW))
            self.meter.reset(TrainMeter.WINDOW)
            self.write_line()
            self.line = line
        if self.is_line_known():
            self.write_line()
        if is_last:  # the epoch's own checkpoint follows
            return
        if log.save_every_steps and step % log.save_every_steps == 0:
            self.save()
        if self.is_stop_requested():
            raise Interrupted(self.save(), self.run_dir)

    def write_line(self) -> None:
        """Write the line that is begun, waiting for its numbers; raise instead if the loss had broken by then."""
        line, self.line = self.line, None
        if line is not None:
            self.check_finite(line.reading, line.lr)
            self.log.write("train", line.step, line.reading.means() | {"lr": line.lr})

    def is_line_known(self) -> bool:
        """Whether a line is begun and its numbers are there. Several ranks find out at one step that the loss broke, so
        on GPUs, where numbers come sooner on some, they wait for the next log step."""
        is_agreed = ranks.world() == 1 or self.device.type == "cpu"
        return self.line is not None and is_agreed and self.line.reading.is_done()

    def is_stop_requested(self) -> bool:
        """Whether to save and leave. Alone it is known at once; several ranks agree at a log step, on what each was
        asked by the log step before."""
        if ranks.world() == 1:
            return self.interrupt.requested
        if self.progress.step % self.config.log.every_steps:
            return False
        asked = torch.full((1,), float(self.interrupt.requested), device=self.device)
        before, self.vote = self.vote, Reading(ranks.highest(asked))
        return before is not None and before.wait() == [1]

    def finish_epoch(self, seconds: float, scores: dict[str, float] | None = None) -> dict[str, float]:
        """Evaluate, remember the best epoch, write the epoch's rows and checkpoint.

        Args:
            seconds: that the epoch's steps took.
            scores: of `evaluate` on the selection images, where the caller has them already.
        Returns:
            The epoch's row of summary.csv.
        """
        is_evaluated = self.is_evaluated()
        self.write_line()
        reading = self.meter.start_read(TrainMeter.EPOCH)
        self.check_finite(reading, self.lr)
        train = reading.means()
        self.meter.reset(TrainMeter.EPOCH)
        self.progress.epoch += 1
        row = {"epoch": self.progress.epoch, "lr": self.lr} | train
        if is_evaluated:
            scores = scores or evaluate(self.step.model, self.select_loader, self.device, self.step.dtype)
            self.judge(scores["top1"])
            row |= {f"val_{name}": scores[name] for name in ("top1", "top5", "loss")}
        images = len(self.train_loader) * self.config.data.batch_size
        self.log.write("epoch", self.progress.step, row | {"seconds": seconds, "images_per_s": images / seconds})
        self.log.write_epoch(row | {"seconds": round(seconds, 3)})
        if self.config.log.print_epochs and ranks.is_writer():
            left_s = self.pace.left_s(self.progress.step)
            print(epoch_message(self.config.name, self.config.epochs, row, seconds, left_s), flush=True)
        is_due = ranks.any_rank(self.saver.age_s() >= self.config.log.save_every_s, self.device)
        is_stopping = ranks.any_rank(self.interrupt.requested, self.device)
        if self.is_finished() or is_due or is_stopping:
            path = self.save()
            if is_stopping and not self.is_finished():
                raise Interrupted(path, self.run_dir)
        return row

    def is_evaluated(self) -> bool:
        """Whether the epoch that now ends is judged: every `eval.every_epochs`-th and the last."""
        done = self.progress.epoch + 1
        is_last = done == self.config.epochs or self.reached_max_steps()
        return is_last or done % self.config.eval.every_epochs == 0

    def judge(self, top1: float) -> None:
        """Keep the weights if this epoch is the best so far."""
        if top1 > self.progress.best_top1:
            self.progress.best_top1, self.progress.best_epoch = top1, self.progress.epoch
            self.saver.keep_best(self.progress)

    def check_finite(self, reading: MeterReading, lr: float) -> None:
        bad = reading.first_bad_step()
        if bad is None:
            return
        self.saver.write_best()
        kept = self.saver.store.all()
        raise NonFiniteLossError(
            f"the loss is not finite at step {bad} (learning rate {lr:.3g}); the last good checkpoint is "
            f"{kept[-1] if kept else 'none yet'}. Lower optim.lr, set optim.clip_norm, or use --precision fp32"
        )

    def save(self) -> Path:
        """Write a checkpoint from which the run continues exactly."""
        self.write_line()
        self.check_finite(self.meter.start_read(TrainMeter.WINDOW), self.lr)
        return self.saver.save(self.progress, self.log.position())

    def resume(self) -> bool:
        """Continue from the newest checkpoint; False where there is none."""
        found = self.saver.resume()
        if found is None:
            self.log.rewind({"metrics.jsonl": 0, "summary.csv": 0})
            return False
        self.progress, log_position = found
        self.log.rewind(log_position)
        return True

    def set_lr(self) -> None:
        """The learning rate of the next step."""
        epochs = float(self.progress.epoch)
        if self.config.optim.per_step:
            epochs += self.step_in_epoch() / len(self.train_loader)
        self.lr = learning_rate(self.config.optim, epochs, self.config.epochs)
        set_learning_rate(self.step.optimizer, self.lr)

    def reached_max_steps(self) -> bool:
        return 0 < self.config.max_steps <= self.progress.step
