"""Predict how long a sweep will take, from some measured steps of each kind of group."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from lgfast.assembly.device import resolve_device, resolve_precision
from lgfast.assembly.images import DataSplits, load_splits, settle
from lgfast.assembly.lanes import Shared, build_silent_lane, share
from lgfast.assembly.networks import build_model
from lgfast.assembly.teachers import as_teacher, teacher_config, teacher_folder
from lgfast.config import Config, digest, get, replace, to_dict
from lgfast.data import Batch
from lgfast.guidance import Teacher
from lgfast.records.result import read_result
from lgfast.runtime.interrupt import InterruptFlag
from lgfast.step import graph
from lgfast.sweep.group import group_key, most_demanding
from lgfast.training.loop import Loop

WARMUP_STEPS, PROBE_STEPS = graph.WARMUP_STEPS + 1, 10  # by then a step is captured
PROBED_KINDS = 4  # groups of further kinds count as the mean of these
# Keys that do not change how long a run takes.
COSTLESS = ("seed", "name", "run_dir", "data.seed", "optim.lr", "optim.min_lr", "optim.weight_decay", "optim.momentum")


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Seconds that a sweep is expected to take."""

    groups: int
    students: float  # seconds for all groups, one after another
    teacher: float  # seconds to train the teacher first; 0 if it is trained already

    def total(self, workers: int) -> float:
        return self.teacher + self.students / max(1, min(workers, self.groups))


def predict(
    configs: Sequence[Config], group: int, say: Callable[[int, int, int], None] = lambda number, kinds, trials: None
) -> Prediction:
    """Measure a group of each kind and add up the predicted times.

    Args:
        configs: of all runs.
        group: trials that share a process.
        say: called before each measurement, with its number, how many there are, and its trials.
    """
    configs = [resolve_precision(config) for config in configs]
    by_key = defaultdict(list)
    for config in configs:
        by_key[group_key(config)].append(config)
    chunks = [runs[i : i + group] for runs in by_key.values() for i in range(0, len(runs), group)]
    kinds = {kind_of(chunk): chunk for chunk in reversed(chunks)}
    chosen = list(kinds)[::-1][:PROBED_KINDS]
    teacher, measured = teacher_to_train(configs), {}
    for number, kind in enumerate(chosen, 1):
        say(number, len(chosen) + (teacher is not None), len(kinds[kind]))
        measured[kind] = measure(kinds[kind])
    mean = sum(measured.values()) / len(measured)
    students = sum(measured.get(kind_of(chunk), mean) for chunk in chunks)
    if teacher is None:
        return Prediction(len(chunks), students, 0.0)
    say(len(chosen) + 1, len(chosen) + 1, 1)
    return Prediction(len(chunks), students, measure([teacher]))


def kind_of(chunk: Sequence[Config]) -> tuple[str, ...]:
    """A key that is equal for groups that take equally long."""
    same = Config()
    changes = {key: get(same, key) for key in COSTLESS}
    return tuple(sorted(digest(to_dict(replace(config, changes))) for config in chunk))


def teacher_to_train(configs: Sequence[Config]) -> Config | None:
    """Return the teacher's configuration, or None where the teacher is trained already or not needed."""
    guided = next((config for config in configs if config.needs_teacher), None)
    if guided is None or guided.teacher.checkpoint != "auto":
        return None
    is_there = read_result(teacher_folder(guided, load_splits(guided).train)) is not None
    return None if is_there else teacher_config(guided)


def measure(configs: Sequence[Config]) -> float:
    """Predict the seconds of one group. It measures with an untrained teacher, whose time does not depend on its
    weights."""
    device = resolve_device(configs[0].device)
    config = replace(most_demanding(configs), {"teacher.targets": "live"})  # the slowest
    splits = load_splits(config)
    config = settle(config, splits)
    teacher = untrained_teacher(config, splits, device) if config.needs_teacher else None
    shared = share(config, splits, teacher, device, len(configs))
    step_s, evaluation_s = time_loop([shortened(own, len(shared.loaders.train)) for own in configs], shared)
    evaluations = math.ceil(config.epochs / config.eval.every_epochs)
    steps = config.epochs * len(shared.loaders.train)
    return min(steps, config.max_steps or steps) * step_s + evaluations * evaluation_s


def shortened(config: Config, steps_per_epoch: int) -> Config:
    """Return the run's configuration with as many steps as a probe takes, and one evaluation at their end."""
    steps = WARMUP_STEPS + PROBE_STEPS
    epochs = max(config.epochs, math.ceil(steps / steps_per_epoch))
    changes = {"max_steps": steps, "epochs": epochs, "eval.every_epochs": epochs, "log.save_every_steps": 0}
    return replace(config, changes | {"log.print_epochs": False})


def time_loop(configs: Sequence[Config], shared: Shared) -> tuple[float, float]:
    """Measure the seconds of a step and of an evaluation of all lanes."""
    lanes = [build_silent_lane(config, shared) for config in configs]
    steps = Stopwatch(shared.device, WARMUP_STEPS, WARMUP_STEPS + PROBE_STEPS)
    evaluation = Stopwatch(shared.device, 0, len(shared.loaders.select))
    selection = evaluation(shared.loaders.select)
    Loop(lanes, shared.loaders.train, selection, shared.targets, InterruptFlag(), watch=steps).run()
    for lane in lanes:
        lane.raise_error()
    return steps.seconds / PROBE_STEPS, evaluation.seconds


class Stopwatch:
    """Passes batches on, and measures the time to make and use some of them.

    Args:
        first, last: the numbers of batches used when the watch starts and when it stops.
    Attributes:
        seconds: the time from start to stop.
    """

    def __init__(self, device: torch.device, first: int, last: int) -> None:
        self.device, self.first, self.last = device, first, last
        self.count, self.seconds = 0, 0.0

    def __call__(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        if self.count == 0:
            self.look()
        for batch in batches:
            try:
                yield batch
            finally:
                self.count += 1
                self.look()

    def look(self) -> None:
        if self.count == self.first:
            self.seconds -= self.now()
        elif self.count == self.last:
            self.seconds += self.now()

    def now(self) -> float:
        """Wait for the device's work and return the time."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def untrained_teacher(config: Config, splits: DataSplits, device: torch.device) -> Teacher:
    """Build a teacher of the right shape with random weights."""
    model = build_model(teacher_config(config), splits.train.num_classes).to(device)
    return as_teacher(config, model)
