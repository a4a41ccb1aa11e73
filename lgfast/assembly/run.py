"""Run a training: images, teacher, student, step, loop, and the final test."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from lgfast.assembly.device import resolve_device, resolve_precision
from lgfast.assembly.images import DataSplits, describe_pixels, describe_splits, load_splits, record_parts, settle
from lgfast.assembly.lanes import build_lane, share
from lgfast.assembly.loaders import eval_loader
from lgfast.assembly.run_folder import check_run_folder, run_folder
from lgfast.assembly.teachers import load_teacher, teacher_source
from lgfast.config import Config
from lgfast.guidance.teacher import Teacher
from lgfast.records.answers import Answers, write_answers
from lgfast.records.checkpoint import load_weights, read_weights
from lgfast.records.files import WriteError, write_text
from lgfast.records.result import Result, read_result
from lgfast.runtime import ranks
from lgfast.runtime.interrupt import InterruptFlag
from lgfast.training.evaluation import evaluate, evaluate_logits
from lgfast.training.lane import Lane
from lgfast.training.loop import Row, keep_going


def train_run(
    config: Config,
    resume: bool = False,
    interrupt: InterruptFlag | None = None,
    alone: bool = False,
    on_epoch: Callable[[Lane, Row], bool] = keep_going,
) -> Result:
    """Train as `config` says (its teacher first, if it needs one) and test the result.

    Args:
        resume: continue from the newest checkpoint of `config.run_dir` (start anew where there is none).
        alone: train in this process only, whatever torchrun launched beside it. The first rank to come trains a teacher
            this way.
        on_epoch: called after every epoch with the lane and its row.
    """
    interrupt = interrupt or InterruptFlag()
    started = time.perf_counter()
    if ranks.is_speaker():
        check_run_folder(config, resume or ranks.was_launched_by_torchrun())  # which may have started the ranks again
    device, config = resolve_device(config.device), resolve_precision(config)
    with interrupt.at_once():
        splits = load_splits(config)
    config = settle(config, splits)
    if config.log.print_epochs and not alone and ranks.is_speaker():
        print(describe_splits(config, splits) + describe_pixels(config), flush=True)
    teacher, teacher_run = prepare_teacher(config, splits, device, interrupt)
    with contextlib.nullcontext(ranks.Start()) if alone else ranks.joined(device) as start:
        resume = resume or start.is_restart
        with run_folder(config, resume) as run_dir:
            start.begin()
            with interrupt.at_once():
                shared = share(config, splits, teacher, device, num_lanes=1)
                lane = build_lane(dataclasses.replace(config, run_dir=str(run_dir)), shared)
            if resume:
                continue_run(lane)
            with contextlib.nullcontext() if alone else saying_how_to_go_on(run_dir):
                if config.data.dataset == "folder" and ranks.is_writer():
                    record_parts(run_dir, splits)
                shared.loop([lane], interrupt, on_epoch, lane.watched).run()
                lane.raise_error()
                return final_test(lane, splits, teacher_run, time.perf_counter() - started)


@contextlib.contextmanager
def saying_how_to_go_on(run_dir: Path) -> Iterator[None]:
    """Add to an error of writing the command that continues once there is room."""
    try:
        yield
    except WriteError as error:
        way_on = f"make room for it, then continue with: python -m lgfast.train --resume {run_dir}"
        raise WriteError(error.fact, way_on) from error


def continue_run(lane: Lane) -> None:
    """Continue from the newest checkpoint, which every rank must see."""
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
    """Return the teacher, trained first if needed, and its source; None where the run has none."""
    if not config.needs_teacher:
        return None, None
    train = partial(train_run, resume=True, interrupt=interrupt, alone=True)
    source = teacher_source(config, splits.train, train, interrupt)
    return load_teacher(config, source, splits.train, device), source


def final_test(lane: Lane, splits: DataSplits, teacher_run: Path | None, seconds: float) -> Result:
    """Test the last and the selected weights, unless that was just done, and write result.json."""
    config, run_dir, device, model = lane.config, lane.run_dir, lane.device, lane.step.model
    loader = eval_loader(config, splits.test, device)
    is_last_best = lane.progress.best_epoch == lane.progress.epoch
    last = known_scores(lane, splits)
    if last is None and not is_last_best:
        last = evaluate(model, loader, device)
    ranks.barrier()  # until the writer has written
    best_path = run_dir / "best.safetensors"
    load_weights(model, read_weights(best_path)[0], best_path)
    best, logits, labels = evaluate_logits(model, loader, device)
    answers = Answers.of(logits, labels, splits.test, f"{config.data.dataset}, test")
    last = last or best
    result = Result(
        run_dir=str(run_dir),
        test_top1=best["top1"],
        test_top5=best["top5"],
        last_test_top1=last["top1"],
        best_epoch=lane.progress.best_epoch,
        selected_on="test" if config.eval.protocol == "paper" else "validation",
        val_top1=lane.progress.best_top1,
        metric=config.eval.metric,
        val_score=lane.progress.best_score,
        seconds=seconds,
        teacher_run=str(teacher_run) if teacher_run else None,
        teacher_test_top1=teacher_test_top1(teacher_run),
        class_top1=answers.class_top1(),
        test_map=best.get("map"),
        guided_epochs=lane.progress.guided_epochs,
    )
    if ranks.is_writer():
        write_answers(run_dir / "test", answers)
        write_text(run_dir / "result.json", json.dumps(dataclasses.asdict(result), indent=2) + "\n")
    return result


def known_scores(lane: Lane, splits: DataSplits) -> dict[str, float] | None:
    """Return the last epoch's scores where they are those of the test: it saw the test images in float32."""
    is_same = splits.select is splits.test and lane.step.dtype == torch.float32
    return lane.scores if is_same else None


def teacher_test_top1(teacher_run: Path | None) -> float | None:
    result = read_result(teacher_run) if teacher_run else None
    return result.test_top1 if result else None
