"""Measure how far the student's features are from the teacher's at each tap, before training and at its end."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from lgfast.assembly.images import SplitImages
from lgfast.assembly.loaders import eval_loader
from lgfast.assembly.networks import build_student, guided_layers
from lgfast.assembly.teachers import load_teacher
from lgfast.config import Config
from lgfast.guidance import GuidedStudent
from lgfast.guidance.teacher import Teacher, TeacherTargets
from lgfast.ops import feature_mse
from lgfast.records.checkpoint import CheckpointStore, load_weights
from lgfast.runtime.paths import user_path

FILE = "features.csv"


def measure_features(run_dir: Path, config: Config, teacher_run: Path, images: SplitImages) -> list[dict[str, object]]:
    """Return a row for each pair of student's map and teacher's stage, on test images as one batch.

    The distance is the mean squared difference of the projected student's map and the teacher's, as in the guidance
    loss, divided by the mean square of the teacher's: 0 where the maps are equal, 1 where the student's is zero.

    Args:
        config: of a guided run.
        teacher_run: the folder of its teacher's run.
        images: a few test images.
    Returns:
        No rows where the run keeps no checkpoint, or its guidance compares maps by another transform than linear.
    Raises:
        ValueError: the teacher or the checkpoint cannot be read.
    """
    found = CheckpointStore(run_dir).load_newest()
    if found is None or config.guidance.transform != "linear":
        return []
    weights, state = found
    config = dataclasses.replace(config, precision="fp32", device="cpu")
    teacher = load_teacher(config, user_path(str(teacher_run)), images, torch.device("cpu"))
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(config.seed)
        student = build_student(config, images.num_classes, teacher)
    before = distances(config, student, teacher, images)
    load_weights(student.model, weights, run_dir)
    if student.guidance is not None:
        student.guidance.load_state_dict(state["guidance"])
    after = distances(config, student, teacher, images)
    layers = guided_layers(config, student.model)
    taps = [str(layer) for layer in layers] if len(layers) == len(after) else ["learned"] * len(after)
    rows = zip(taps, teacher.stages, after, before, strict=True)
    return [
        {"tap": tap, "teacher_stage": stage, "distance": round(now, 4), "before_training": round(then, 4)}
        for tap, stage, now, then in rows
    ]


@torch.no_grad()
def distances(config: Config, student: GuidedStudent, teacher: Teacher, images: SplitImages) -> list[float]:
    """Return the distance of every pair."""
    spec = config.augment
    small = dataclasses.replace(config, augment=dataclasses.replace(spec, image_size=spec.teacher_size))
    theirs, ours = (batch_of(one, images) for one in (small, config))
    targets = TeacherTargets(teacher.outputs(theirs))
    seen: list[list[tuple[Tensor, tuple[int, int]]]] = []
    assert student.guidance is not None
    handle = student.guidance.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    student.eval()(ours, targets)
    handle.remove()
    maps = seen[0] if student.guidance.taps is None else student.guidance.taps(seen[0])
    found = []
    for project, (tokens, grid), teacher_map in zip(
        student.guidance.projections, maps, targets.wait().maps, strict=True
    ):
        own = teacher_map.float()
        size = feature_mse(
            [torch.zeros_like(project(tokens))], [own], [grid]
        )  # the mean square of the teacher's map, resized in the same way
        found.append(float(feature_mse([project(tokens)], [own], [grid]) / size))
    return found


def batch_of(config: Config, images: SplitImages) -> Tensor:
    """Return all images as one batch, transformed as in evaluation."""
    return torch.cat([batch.images for batch in eval_loader(config, images, torch.device("cpu"))])
