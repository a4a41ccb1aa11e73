"""Puts a run together: images, teacher, student, step, loop, and the final test."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lgfast.assembly.device import resolve_device, resolve_precision
from lgfast.assembly.images import DataSplits, describe_splits, load_splits, record_parts, settle_epochs
from lgfast.assembly.loaders import Loaders, build_loaders, eval_loader
from lgfast.assembly.networks import build_student, weights_metadata
from lgfast.assembly.targets import target_source
from lgfast.assembly.teachers import load_teacher, teacher_source
from lgfast.config import FREE_ON_RESUME, Config, dump_yaml, load_yaml, replace
from lgfast.guidance.teacher import TargetSource, Teacher
from lgfast.optim.build import build_optimizer, clips_itself
from lgfast.records.checkpoint import WriteError, atomic_path, load_weights, read_weights
from lgfast.records.result import Result, read_result
from lgfast.runtime import ranks
from lgfast.runtime.allocator import keep_freed_memory
from lgfast.runtime.environment import describe_environment
from lgfast.runtime.interrupt import InterruptFlag
from lgfast.runtime.paths import user_path
from lgfast.step import Objective, TrainMeter, TrainStep
from lgfast.training.evaluation import evaluate, evaluate_classes
from lgfast.training.loop import Trainer


def train_run(
    config: Config, resume: bool = False, interrupt: InterruptFlag | None = None, alone: bool = False
) -> Result:
    """Train as `config` says (its teacher first, if it needs one) and test the result.

    Args:
        resume: continue from the newest checkpoint of `config.run_dir` (start anew where there is none).
        alone: in this process, whatever torchrun launched beside it; so a teacher is trained by the first rank to come.
    """
    interrupt = interrupt or InterruptFlag()
    started = time.perf_counter()
    device, config = resolve_device(config.device), resolve_precision(config)
    splits = load_splits(config)
    config = settle_epochs(config, splits)
    if config.log.print_epochs and not alone and ranks.is_speaker():
        print(describe_splits(config, splits), flush=True)
    teacher, teacher_run = prepare_teacher(config, splits, device, interrupt)
    with contextlib.nullcontext(ranks.Start()) if alone else ranks.joined(device) as start:
        resume = resume or start.is_restart
        run_dir = open_run_dir(config, resume)
        start.begin()
        with contextlib.nullcontext() if resume else emptied_on_failure(run_dir):
            loaders = build_loaders(config, splits, device)
            targets, batches = target_source(config, teacher, loaders.train)
            loaders = dataclasses.replace(loaders, train=batches)
            own = dataclasses.replace(config, run_dir=str(run_dir))
            trainer = build_trainer(own, splits, targets, device, interrupt, loaders)
        if resume:
            continue_run(trainer)
        with contextlib.nullcontext() if alone else saying_how_to_go_on(run_dir):
            if config.data.dataset == "folder" and not resume and ranks.is_writer():
                record_parts(run_dir, splits)
            trainer.fit()
            return report(config, run_dir, trainer, splits, device, teacher_run, time.perf_counter() - started)


@contextlib.contextmanager
def saying_how_to_go_on(run_dir: Path) -> Iterator[None]:
    """What could not be written is named with the command that goes on once there is room."""
    try:
        yield
    except WriteError as error:
        way_on = f"make room for it, then continue with: python -m lgfast.train --resume {run_dir}"
        raise WriteError(error.fact, way_on) from error


def continue_run(trainer: Trainer) -> None:
    """Go on from the newest checkpoint, which every rank must see."""
    is_found = trainer.resume()
    steps = [state["step"] for state in ranks.gather({"step": trainer.progress.step})]
    if len(set(steps)) > 1:
        raise ValueError(
            f"run_dir: the ranks found checkpoints of different steps in {trainer.run_dir} ({sorted(set(steps))}); "
            "all machines of a run must see one folder"
        )
    if is_found and ranks.is_writer():
        print(f"continuing {trainer.run_dir} after step {steps[0]}", flush=True)


def prepare_teacher(
    config: Config, splits: DataSplits, device: torch.device, interrupt: InterruptFlag
) -> tuple[Teacher | None, Path | None]:
    """The teacher, trained first if need be, and where it comes from; None where the run has none."""
    if not config.needs_teacher:
        return None, None
    source = teacher_source(config, splits.train, partial(train_run, resume=True, interrupt=interrupt, alone=True))
    return load_teacher(config, source, splits.train, device), source


def open_run_dir(config: Config, resume: bool) -> Path:
    """Create the run's folder with its configuration and environment; refuse one that holds another run."""
    mark = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}" if ranks.world() == 1 else ranks.run_name()
    run_dir = user_path(config.run_dir or f"runs/{config.name}-{mark}")
    config = dataclasses.replace(config, run_dir=str(run_dir))
    if not resume and (run_dir / "config.yaml").exists():
        raise ValueError(
            f"run_dir: {run_dir} already holds a run; continue it with --resume {run_dir}, or name another"
        )
    ranks.barrier()
    if ranks.is_writer():
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "config.yaml").write_text(dump_yaml(config))
        (run_dir / "environment.json").write_text(json.dumps(describe_environment(), indent=2) + "\n")
    return run_dir


@contextlib.contextmanager
def emptied_on_failure(run_dir: Path) -> Iterator[None]:
    """A run that cannot begin, as with an impossible setting, leaves no folder in the way of the corrected one."""
    try:
        yield
    except Exception:
        if ranks.is_writer():
            for name in ("config.yaml", "environment.json"):
                (run_dir / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty
                run_dir.rmdir()
        raise


def build_trainer(
    config: Config,
    splits: DataSplits,
    teacher: TargetSource | None,
    device: torch.device,
    interrupt: InterruptFlag,
    loaders: Loaders | None = None,
) -> Trainer:
    """The trainer of one run; the model's initial weights depend on `config.seed` alone.

    Args:
        teacher: None where the run has none.
        loaders: shared with other trainers; None to build the run's own.
    """
    if device.type == "cpu":
        keep_freed_memory()
    loaders = loaders or build_loaders(config, splits, device)
    torch.manual_seed(config.seed)
    student = build_student(config, splits.train.num_classes, teacher).to(device)
    has_overflows = config.precision == "fp16-amp"
    optimizer = build_optimizer(student.named_parameters(), config.optim, skip_nonfinite=has_overflows)
    step = TrainStep(
        student,
        teacher,
        optimizer,
        TrainMeter(device),
        build_objective(config, device),
        precision=config.precision,
        clip_norm=0.0 if clips_itself(optimizer) else config.optim.clip_norm,
        options=config.step,
    )
    if ranks.rank() > 0:  # every rank drops its own paths; the weights are equal by now
        torch.manual_seed(config.seed + (ranks.rank() << 32))
    metadata = weights_metadata(config, splits.train)
    run_dir = Path(config.run_dir)
    return Trainer(config, run_dir, student, step, loaders.train, loaders.select, metadata, interrupt)


def build_objective(config: Config, device: torch.device) -> Objective:
    smoothing = config.optim.label_smoothing
    return Objective(config.guidance.weight, label_smoothing=smoothing, distill=config.distill, device=device)


def report(
    config: Config,
    run_dir: Path,
    trainer: Trainer,
    splits: DataSplits,
    device: torch.device,
    teacher_run: Path | None,
    seconds: float,
) -> Result:
    """Test the last and the selected weights, once each, and write result.json."""
    model, loader = trainer.step.model, eval_loader(config, splits.test, device)
    last = evaluate(model, loader, device)
    ranks.barrier()  # the writer has written
    best_path = run_dir / "best.safetensors"
    load_weights(model, read_weights(best_path)[0], best_path)
    best, by_class = evaluate_classes(model, loader, device, splits.test.class_names)
    result = Result(
        run_dir=str(run_dir),
        test_top1=best["top1"],
        test_top5=best["top5"],
        last_test_top1=last["top1"],
        best_epoch=trainer.progress.best_epoch,
        selected_on="test" if config.eval.protocol == "paper" else "validation",
        val_top1=trainer.progress.best_top1,
        seconds=seconds,
        teacher_run=str(teacher_run) if teacher_run else None,
        teacher_test_top1=teacher_test_top1(teacher_run),
        class_top1=by_class,
    )
    if ranks.is_writer():
        with atomic_path(run_dir / "result.json") as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(result), indent=2) + "\n")
    return result


def teacher_test_top1(teacher_run: Path | None) -> float | None:
    result = read_result(teacher_run) if teacher_run else None
    return result.test_top1 if result else None


def resume_config(run_dir: Path | str, changes: dict[str, Any]) -> Config:
    """The configuration of the run in `run_dir`; changing what the run computes is refused."""
    run_dir = user_path(run_dir)
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise ValueError(f"--resume: {run_dir} is no folder of a run or a sweep (it has no config.yaml or sweep.json)")
    config = dataclasses.replace(load_yaml(path), run_dir=str(run_dir))
    for key, value in changes.items():
        if not key.startswith(FREE_ON_RESUME) and replace(config, {key: value}) != config:
            raise ValueError(
                f"--resume: {key} cannot change in a resumed run ({run_dir} was started with another value); "
                "start a new run instead"
            )
    return replace(config, changes)
