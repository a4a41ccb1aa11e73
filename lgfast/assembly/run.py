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
from lgfast.assembly.lanes import build_lane, share
from lgfast.assembly.loaders import eval_loader
from lgfast.assembly.teachers import load_teacher, teacher_source
from lgfast.config import FREE_ON_RESUME, Config, dump_yaml, load_yaml, replace
from lgfast.guidance.teacher import Teacher
from lgfast.records.checkpoint import load_weights, read_weights
from lgfast.records.files import WriteError, write_text
from lgfast.records.result import Result, read_result
from lgfast.runtime import ranks
from lgfast.runtime.environment import describe_environment
from lgfast.runtime.interrupt import InterruptFlag
from lgfast.runtime.paths import user_path
from lgfast.training.evaluation import evaluate, evaluate_classes
from lgfast.training.lane import Lane


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
            shared = share(config, splits, teacher, device, num_lanes=1)
            lane = build_lane(dataclasses.replace(config, run_dir=str(run_dir)), shared)
        if resume:
            continue_run(lane)
        with contextlib.nullcontext() if alone else saying_how_to_go_on(run_dir):
            if config.data.dataset == "folder" and not resume and ranks.is_writer():
                record_parts(run_dir, splits)
            shared.loop([lane], interrupt, watch=lane.watched).run()
            lane.raise_error()
            return final_test(lane, splits, teacher_run, time.perf_counter() - started)


@contextlib.contextmanager
def saying_how_to_go_on(run_dir: Path) -> Iterator[None]:
    """What could not be written is named with the command that goes on once there is room."""
    try:
        yield
    except WriteError as error:
        way_on = f"make room for it, then continue with: python -m lgfast.train --resume {run_dir}"
        raise WriteError(error.fact, way_on) from error


def continue_run(lane: Lane) -> None:
    """Go on from the newest checkpoint, which every rank must see."""
    is_found = lane.resume()
    steps = [state["step"] for state in ranks.gather({"step": lane.progress.step})]
    if len(set(steps)) > 1:
        raise ValueError(
            f"run_dir: the ranks found checkpoints of different steps in {lane.run_dir} ({sorted(set(steps))}); "
            "all machines of a run must see one folder"
        )
    if is_found and ranks.is_writer():
        print(f"continuing {lane.run_dir} after step {steps[0]}", flush=True)


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
        write_text(run_dir / "config.yaml", dump_yaml(config))
        write_text(run_dir / "environment.json", json.dumps(describe_environment(), indent=2) + "\n")
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


def final_test(lane: Lane, splits: DataSplits, teacher_run: Path | None, seconds: float) -> Result:
    """Test the last and the selected weights, where that was not just done, and write result.json."""
    config, run_dir, device, model = lane.config, lane.run_dir, lane.device, lane.step.model
    loader = eval_loader(config, splits.test, device)
    is_last_best = lane.progress.best_epoch == lane.progress.epoch
    last = known_scores(lane, splits)
    if last is None and not is_last_best:
        last = evaluate(model, loader, device)
    ranks.barrier()  # the writer has written
    best_path = run_dir / "best.safetensors"
    load_weights(model, read_weights(best_path)[0], best_path)
    best, by_class = evaluate_classes(model, loader, device, splits.test.class_names)
    last = last or best
    result = Result(
        run_dir=str(run_dir),
        test_top1=best["top1"],
        test_top5=best["top5"],
        last_test_top1=last["top1"],
        best_epoch=lane.progress.best_epoch,
        selected_on="test" if config.eval.protocol == "paper" else "validation",
        val_top1=lane.progress.best_top1,
        seconds=seconds,
        teacher_run=str(teacher_run) if teacher_run else None,
        teacher_test_top1=teacher_test_top1(teacher_run),
        class_top1=by_class,
        guided_epochs=lane.progress.guided_epochs,
    )
    if ranks.is_writer():
        write_text(run_dir / "result.json", json.dumps(dataclasses.asdict(result), indent=2) + "\n")
    return result


def known_scores(lane: Lane, splits: DataSplits) -> dict[str, float] | None:
    """What the last epoch's own evaluation says of the test: it is the same where it saw the test images in float32."""
    is_same = splits.select is splits.test and lane.step.dtype == torch.float32
    return lane.scores if is_same else None


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
