"""How long a sweep will take: some steps of each group, measured, times what is to be done."""

from __future__ import annotations

import dataclasses
import itertools
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch

from lgfast.assembly.device import resolve_device, resolve_precision
from lgfast.assembly.images import DataSplits, load_splits, settle_epochs
from lgfast.assembly.loaders import build_loaders
from lgfast.assembly.networks import build_model
from lgfast.assembly.teachers import as_teacher, teacher_config, teacher_folder
from lgfast.config import Config, replace
from lgfast.data import Batch
from lgfast.data.epoch_loader import EpochLoader
from lgfast.guidance import Teacher
from lgfast.records.result import read_result
from lgfast.runtime.interrupt import InterruptFlag
from lgfast.step import graph
from lgfast.sweep.group import SharedTeacher, Student, group_key, most_demanding
from lgfast.training.evaluation import evaluate_all

WARMUP_STEPS, PROBE_STEPS = graph.WARMUP_STEPS + 1, 10  # by then a step is captured
PROBED_GROUPS = 4  # further groups are taken to cost the mean of these


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Seconds that a sweep is expected to take."""

    groups: int
    students: float  # seconds of all groups, one after another
    teacher: float  # seconds to train the teacher first; 0 if it is there already

    def total(self, workers: int) -> float:
        return self.teacher + self.students / max(1, min(workers, self.groups))


def predict(configs: Sequence[Config], group: int) -> Prediction:
    """Measure and add up.

    Args:
        configs: of all runs.
        group: trials that share a process.
    """
    configs = [resolve_precision(config) for config in configs]
    by_key = defaultdict(list)
    for config in configs:
        by_key[group_key(config)].append(config)
    chunks = [runs[i : i + group] for runs in by_key.values() for i in range(0, len(runs), group)]
    measured = [measure(chunk) for chunk in chunks[:PROBED_GROUPS]]
    students = sum(measured) * len(chunks) / len(measured)
    return Prediction(len(chunks), students, teacher_seconds(configs))


def teacher_seconds(configs: Sequence[Config]) -> float:
    guided = next((config for config in configs if config.needs_teacher), None)
    if guided is None or guided.teacher.checkpoint != "auto":
        return 0.0
    if read_result(teacher_folder(guided, load_splits(guided).train)) is not None:
        return 0.0
    return measure([teacher_config(guided)])


def measure(configs: Sequence[Config]) -> float:
    """Predicted seconds of one group. The teacher is an untrained one: its time does not depend on its weights."""
    device = resolve_device(configs[0].device)
    config = replace(most_demanding(configs), {"teacher.targets": "live"})  # the slowest
    splits = load_splits(config)
    config = settle_epochs(config, splits)
    teacher = SharedTeacher(untrained_teacher(config, splits, device)) if config.needs_teacher else None
    loaders = build_loaders(config, splits, device)
    with tempfile.TemporaryDirectory() as folder:
        students = []
        for number, own in enumerate(configs):
            own = replace(own, {"run_dir": str(Path(folder) / str(number)), "log.tensorboard": False})
            students.append(Student(own).build(splits, teacher, device, InterruptFlag(), loaders))
        failed = [student.error for student in students if student.trainer is None]
        if failed:
            raise ValueError(failed[0])
        step_s = seconds_per_step(students, teacher, loaders.train)
        started = time.perf_counter()
        evaluate_all(
            [student.trainer.step.model for student in students],
            loaders.select,
            device,
            students[0].trainer.step.dtype,
        )
        evaluation_s = time.perf_counter() - started
        for student in students:
            student.trainer.log.close()
    evaluations = math.ceil(config.epochs / config.eval.every_epochs)
    steps = config.epochs * len(loaders.train)
    return min(steps, config.max_steps or steps) * step_s + evaluations * evaluation_s


def seconds_per_step(students: Sequence[Student], teacher: SharedTeacher | None, loader: EpochLoader) -> float:
    for student in students:
        student.trainer.begin_epoch()
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    for count in (WARMUP_STEPS, PROBE_STEPS):
        started = time.perf_counter()
        for batch in itertools.islice(batches, count):
            train_batch(students, teacher, batch)
        students[-1].trainer.meter.read(0)  # sync: the steps are done when the last one's sums can be read
    return (time.perf_counter() - started) / PROBE_STEPS


def train_batch(students: Sequence[Student], teacher: SharedTeacher | None, batch: Batch) -> None:
    if teacher is not None:
        teacher.prepare(batch)
    for student in students:
        student.trainer.step(batch)


def untrained_teacher(config: Config, splits: DataSplits, device: torch.device) -> Teacher:
    """A teacher of the right shape."""
    model = build_model(teacher_config(config), splits.train.num_classes).to(device)
    return as_teacher(config, model)
