"""Build what a loop trains, and what its lanes share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lgfast.assembly.images import DataSplits
from lgfast.assembly.loaders import Loaders, eval_loader, train_loader
from lgfast.assembly.networks import build_trained_part, weights_metadata
from lgfast.assembly.targets import target_source
from lgfast.config import Config, to_dict
from lgfast.data.batch import Batch, BatchStream
from lgfast.guidance.shared import SharedTeacher
from lgfast.guidance.stopping import GuidanceStop, guidance_stop
from lgfast.guidance.teacher import TargetSource, Teacher
from lgfast.optim.build import clips_itself
from lgfast.records.checkpoint import CheckpointStore
from lgfast.records.run_config import flatten
from lgfast.records.run_log import MetricsLog, SilentLog
from lgfast.records.trackers import SafeTracker
from lgfast.runtime import ranks
from lgfast.runtime.allocator import keep_freed_memory
from lgfast.runtime.interrupt import InterruptFlag
from lgfast.step import Objective, TrainMeter, TrainStep
from lgfast.training.lane import Lane
from lgfast.training.loop import Loop, Row, keep_going
from lgfast.training.random_state import RandomState
from lgfast.training.saving import RunSaver, SilentSaver


@dataclass(frozen=True)
class Shared:
    """What the lanes of a loop share."""

    splits: DataSplits
    loaders: Loaders
    targets: TargetSource | None  # gives targets to guided lanes; None where there is no teacher
    device: torch.device
    has_company: bool  # whether there are several lanes

    def loop(
        self,
        lanes: Sequence[Lane],
        interrupt: InterruptFlag,
        on_epoch: Callable[[Lane, Row], bool] = keep_going,
        watch: Callable[[BatchStream], Iterable[Batch]] = iter,
    ) -> Loop:
        return Loop(lanes, self.loaders.train, self.loaders.select, self.targets, interrupt, on_epoch, watch)


def share(config: Config, splits: DataSplits, teacher: Teacher | None, device: torch.device, num_lanes: int) -> Shared:
    """Build what the lanes of a loop share: loaders and the source of the teacher's targets.

    Args:
        config: the configuration of the lane that asks the most of the teacher.
        teacher: None where no lane has one.
        num_lanes: where there are several, one pass of the teacher serves all.
    """
    if device.type == "cpu":
        keep_freed_memory()
    targets, batches = target_source(config, teacher, train_loader(config, splits.train, device))
    loaders = Loaders(batches, eval_loader(config, splits.select, device))
    has_company = num_lanes > 1
    if targets is not None and has_company:
        targets = SharedTeacher(targets)
    return Shared(splits, loaders, targets, device, has_company)


def build_lane(config: Config, shared: Shared) -> Lane:
    """Build the lane of a run in `config.run_dir`. The model's initial weights depend on `config.seed` and on the
    weights it starts from, which a run that continues does not read again."""
    run_dir, stream = Path(config.run_dir), shared.loaders.train
    step = build_step(config, shared, is_new=not CheckpointStore(run_dir).all())
    metadata = weights_metadata(config, shared.splits.train)
    saver = RunSaver(run_dir, step, stream, metadata, config.log.keep_checkpoints)
    log = open_log(config, run_dir) if ranks.is_writer() else SilentLog()
    random_state = RandomState() if shared.has_company else None
    return Lane(config, step, len(stream), saver, log, random_state, stop_of(config))


def build_silent_lane(config: Config, shared: Shared) -> Lane:
    """Build a lane that writes no files."""
    step = build_step(config, shared)
    random_state = RandomState() if shared.has_company else None
    return Lane(config, step, len(shared.loaders.train), SilentSaver(), SilentLog(), random_state)


def objective(config: Config, counts: Tensor, device: torch.device) -> Objective:
    """Return what the run minimises.

    Args:
        counts: [K], training images of each class, by which classes are balanced.
    """
    shares = counts.float() / counts.sum()
    weights = {
        "loss": {"class_weights": torch.where(counts > 0, 1 / (len(counts) * shares), 0.0)},
        "logits": {"log_priors": shares.clamp(min=1e-12).log()},
    }.get(config.data.balance, {})
    return Objective(
        config.guidance.weight,
        label_smoothing=config.optim.label_smoothing,
        distill=config.distill,
        device=device,
        multi_label=config.data.is_multi_label,
        **{name: tensor.to(device) for name, tensor in weights.items()},
    )


def open_log(config: Config, run_dir: Path) -> MetricsLog:
    """Open the run's files, TensorBoard events and the configured tracker."""
    kind = config.log.tracker
    trackers = [] if kind == "none" else [SafeTracker(kind, run_dir, flatten(to_dict(config)))]
    return MetricsLog(run_dir, config.log.tensorboard, trackers)


def say(config: Config, text: str) -> None:
    if config.log.print_epochs and ranks.is_writer():
        print(text, flush=True)


def stop_of(config: Config) -> GuidanceStop | None:
    """Return the rule that ends the run's guidance."""
    return guidance_stop(config.guidance.stop, config.guidance.stop_threshold, config.epochs)


def build_step(config: Config, shared: Shared, is_new: bool = True) -> TrainStep:
    """Build the step of a fresh student with its optimizer.

    Args:
        is_new: load the weights that the run starts from.
    """
    device, teacher = shared.device, shared.targets if config.needs_teacher else None
    torch.manual_seed(config.seed)
    student, optimizer, said = build_trained_part(config, shared.splits.train, teacher, device, is_new)
    if said:
        say(config, said)
    step = TrainStep(
        student,
        teacher,
        optimizer,
        TrainMeter(device, config.data.is_multi_label),
        objective(config, shared.splits.train.class_counts(), device),
        precision=config.precision,
        clip_norm=0.0 if clips_itself(optimizer) else config.optim.clip_norm,
        options=config.step,
    )
    if ranks.rank() > 0:  # ranks drop different paths; their weights are equal by now
        torch.manual_seed(config.seed + (ranks.rank() << 32))
    return step
