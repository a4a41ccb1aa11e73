"""The training loop: epochs, evaluation, checkpoints, resume. The first file to read."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lgfast import ranks
from lgfast.checkpoint import CheckpointStore, load_weights, save_weights
from lgfast.config import Config
from lgfast.data.batch import Batch
from lgfast.data.epoch_loader import EpochLoader
from lgfast.guidance import GuidedStudent
from lgfast.interrupt import Interrupted, InterruptFlag
from lgfast.metrics import EvalMeter, MeterReading, MetricsLog, SilentLog, TrainMeter
from lgfast.optim import learning_rate, set_learning_rate
from lgfast.reading import Reading
from lgfast.step import TrainStep


class NonFiniteLossError(ValueError):
    """The loss became NaN or infinite; the last good checkpoint is kept."""


@dataclass
class Progress:
    """Where a run stands; part of every checkpoint."""

    epoch: int = 0  # epochs completed
    step: int = 0  # optimisation steps completed
    best_top1: float = -1.0
    best_epoch: int = -1


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
        train_loader: EpochLoader,
        select_loader: Iterable[Batch],
        metadata: dict[str, Any],
        interrupt: InterruptFlag,
    ) -> None:
        self.config, self.run_dir, self.student, self.step = config, run_dir, student, step
        self.train_loader, self.select_loader, self.metadata = train_loader, select_loader, metadata
        self.interrupt = interrupt
        self.device = next(student.parameters()).device
        self.store = CheckpointStore(run_dir, config.log.keep_checkpoints)
        self.log = MetricsLog(run_dir, config.log.tensorboard) if ranks.is_writer() else SilentLog()
        self.progress = Progress()
        self.line: LogLine | None = None  # begun and not yet written
        self.vote: Reading | None = None  # whether any rank was asked to stop by the last log step
        self.best: tuple[dict[str, Tensor], dict[str, Any]] | None = None  # weights and metadata yet to be written
        self.saved_at = time.monotonic()

    @property
    def meter(self) -> TrainMeter:
        return self.step.meter

    def fit(self) -> Progress:
        """Train until the last epoch or `max_steps`; on interruption save and raise `Interrupted`."""
        while not self.is_finished():
            started = time.perf_counter()
            self.begin_epoch()
            for batch in self.progress_bar(self.train_loader):
                self.train_batch(batch)
                if self.epoch_is_over():
                    break
            self.finish_epoch(time.perf_counter() - started)
        self.finish()
        return self.progress

    def begin_epoch(self) -> None:
        """Start the pass over the training images, or go on with it after a resume."""
        self.student.train()
        self.train_loader.set_epoch(self.progress.epoch)
        self.step.begin_epoch(self.progress.epoch)
        self.set_lr(self.progress.epoch, self.step_in_epoch())

    def train_batch(self, batch: Batch) -> None:
        """One step, and what is due after it."""
        self.step(batch)
        self.progress.step += 1
        self.after_step(self.step_in_epoch() == len(self.train_loader))
        if self.config.optim.per_step and not self.epoch_is_over():
            self.set_lr(self.progress.epoch, self.step_in_epoch())

    def step_in_epoch(self) -> int:
        return self.progress.step - self.progress.epoch * len(self.train_loader)

    def epoch_is_over(self) -> bool:
        return self.step_in_epoch() >= len(self.train_loader) or self.reached_max_steps()

    def is_finished(self) -> bool:
        return self.progress.epoch >= self.config.epochs or self.reached_max_steps()

    def finish(self) -> None:
        """Write the last weights and close the files."""
        if ranks.is_writer():
            save_weights(self.run_dir / "last.safetensors", self.step.model.state_dict(), self.weights_metadata())
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
            self.keep_best(scores)
            row |= {f"val_{name}": scores[name] for name in ("top1", "top5", "loss")}
        images = len(self.train_loader) * self.config.data.batch_size
        self.log.write("epoch", self.progress.step, row | {"seconds": seconds, "images_per_s": images / seconds})
        self.log.write_epoch(row | {"seconds": round(seconds, 3)})
        self.say(row, seconds)
        is_due = ranks.any_rank(time.monotonic() - self.saved_at >= self.config.log.save_every_s, self.device)
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

    def keep_best(self, scores: dict[str, float]) -> None:
        """Keep the weights of the epoch with the best accuracy on the selection images, in memory until the next
        checkpoint: files of one folder stay of one age."""
        if scores["top1"] > self.progress.best_top1:
            self.progress.best_top1, self.progress.best_epoch = scores["top1"], self.progress.epoch
            state = self.step.model.state_dict()
            self.best = {name: tensor.detach().clone() for name, tensor in state.items()}, self.weights_metadata()

    def write_best(self) -> None:
        if self.best is not None and ranks.is_writer():
            save_weights(self.run_dir / "best.safetensors", *self.best)
        self.best = None

    def check_finite(self, reading: MeterReading, lr: float) -> None:
        bad = reading.first_bad_step()
        if bad is None:
            return
        self.write_best()
        kept = self.store.all()
        raise NonFiniteLossError(
            f"the loss is not finite at step {bad} (learning rate {lr:.3g}); the last good checkpoint is "
            f"{kept[-1] if kept else 'none yet'}. Lower optim.lr, set optim.clip_norm, or use --precision fp32"
        )

    def save(self) -> Path:
        """Write a checkpoint from which the run continues exactly."""
        self.write_line()
        self.check_finite(self.meter.start_read(TrainMeter.WINDOW), self.lr)
        state = {
            "progress": dataclasses.asdict(self.progress),
            "guidance": self.student.guidance.state_dict() if self.student.guidance else {},
            **self.step.state_dict(),
            "loader": self.train_loader.state_dict(),
            "ranks": ranks.gather(self.rank_state()),
            "log_position": self.log.position(),
            "content_hash": self.metadata["content_hash"],
        }
        self.saved_at = time.monotonic()
        if not ranks.is_writer():
            return self.store.path(self.progress.step)
        self.write_best()
        return self.store.save(self.progress.step, self.student.model, self.weights_metadata(), state)

    def rank_state(self) -> dict[str, Any]:
        """What each rank has for itself: the sums of its meters and its random numbers."""
        cuda_rng = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        return {"meter": self.meter.state_dict(), "torch_rng": torch.get_rng_state(), "cuda_rng": cuda_rng}

    def load_rank_state(self, states: list[dict[str, Any]]) -> None:
        """Continue from this rank's state; with another number of ranks each keeps the random numbers it began with."""
        if len(states) != ranks.world():
            return
        own = states[ranks.rank()]
        self.meter.load_state_dict(own["meter"])
        torch.set_rng_state(own["torch_rng"])
        if own["cuda_rng"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(own["cuda_rng"], self.device)

    def resume(self) -> bool:
        """Continue from the newest checkpoint; False where there is none."""
        found = self.store.load_newest()
        if found is None:
            self.log.rewind({"metrics.jsonl": 0, "summary.csv": 0})
            return False
        weights, state = found
        if state["content_hash"] != self.metadata["content_hash"]:
            raise ValueError(
                f"{self.run_dir}: the training images changed since this run was saved; restore them or start a new run"
            )
        load_weights(self.student.model, weights, self.run_dir)
        if self.student.guidance:
            self.student.guidance.load_state_dict(state["guidance"])
        self.step.load_state_dict(state)
        self.train_loader.load_state_dict(state["loader"])
        self.load_rank_state(state["ranks"])
        self.log.rewind(state["log_position"])
        self.progress = Progress(**state["progress"])
        return True

    def weights_metadata(self) -> dict[str, Any]:
        progress = dataclasses.asdict(self.progress)
        return self.metadata | progress

    def set_lr(self, epoch: int, step_in_epoch: int) -> None:
        done = epoch + step_in_epoch / len(self.train_loader) if self.config.optim.per_step else epoch
        self.lr = learning_rate(self.config.optim, done, self.config.epochs)
        set_learning_rate(self.step.optimizer, self.lr)

    def reached_max_steps(self) -> bool:
        return 0 < self.config.max_steps <= self.progress.step

    def progress_bar(self, batches: Iterable[Batch]) -> Iterable[Batch]:
        """A bar on a terminal; nothing in a file."""
        title = f"epoch {self.progress.epoch + 1}/{self.config.epochs}"
        return tqdm(
            batches,
            title,
            leave=False,
            disable=not (sys.stderr.isatty() and ranks.is_writer()),
            total=len(self.train_loader),
        )

    def say(self, row: dict[str, float], seconds: float) -> None:
        if not (self.config.log.print_epochs and ranks.is_writer()):
            return
        val = f"  val {row['val_top1']:.2f} %" if "val_top1" in row else ""
        named = ((name, row[f"{name}_loss"]) for name in ("guidance", "distill"))
        parts = "".join(f"  {name} {loss:.4f}" for name, loss in named if loss)
        print(
            f"{self.config.name}  epoch {row['epoch']}/{self.config.epochs}  loss {row['loss']:.4f}"
            f"{parts}  train {row['train_top1']:.2f} %{val}  lr {row['lr']:.2e}  {seconds:.1f} s",
            flush=True,
        )


def evaluate(
    model: nn.Module, loader: Iterable[Batch], device: torch.device | str, dtype: torch.dtype = torch.float32
) -> dict[str, float]:
    """Top-1, top-5 (percent) and mean cross entropy over a loader, in eval mode.

    Args:
        dtype: what a float32 model computes in, by autocast unless float32.
    """
    return evaluate_all([model], loader, device, dtype)[0]


@torch.no_grad()
def evaluate_all(
    models: Sequence[nn.Module],
    loader: Iterable[Batch],
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
) -> list[dict[str, float]]:
    """`evaluate` of several models in one pass over the loader."""
    was_training = [model.training for model in models]
    meters = [EvalMeter(device) for _ in models]
    autocast = torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32)
    for model in models:
        model.eval()
    for batch in loader:
        for model, meter in zip(models, meters, strict=True):
            with autocast:
                logits = model(batch.images)
            meter.update(logits, batch.labels)
    for model, training in zip(models, was_training, strict=True):
        model.train(training)
    return [meter.read() for meter in meters]
