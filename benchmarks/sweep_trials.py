"""Build the trials that bench_sweep times: students that share batch and teacher, or each student alone."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from lgfast.assembly.images import load_splits
from lgfast.assembly.lanes import build_silent_lane, share
from lgfast.config import Config, load_recipe, replace
from lgfast.data import Batch
from lgfast.runtime.auto_precision import auto_precision
from lgfast.runtime.interrupt import InterruptFlag
from lgfast.sweep.probe import untrained_teacher
from lgfast.training.lane import Lane
from lgfast.training.saving import Progress

VIEWS = {"augment.rand_augment": "rand-m9-mstd0.5-inc1", "augment.flip_prob": 0.5, "augment.erase_prob": 0.25}
RECIPES = {
    "digits": {},
    "heavy": VIEWS
    | {
        "augment.image_size": 32,
        "augment.teacher_size": 32,
        "model.patch_size": 4,
        "teacher.recipe": "cifar100-resnet56",
        "data.loader": "timm",
    },
    "deit-ti": VIEWS
    | {
        "augment.image_size": 224,
        "augment.teacher_size": 32,
        "model.patch_size": "none",
        "model.embed_dim": "none",
        "model.depth": "none",
        "model.num_heads": "none",
        "guidance.student_layers": "0,6,11",
        "teacher.recipe": "cifar100-resnet56",
        "data.batch_size": 128,
        "data.train_limit": 1200,
    },
}
COMMON = {"data.seed": 0, "model.drop_path_rate": 0.1, "log.tensorboard": False, "log.every_steps": 10**9}


def trial_configs(recipe: str, students: int, device: str, folder: Path) -> list[Config]:
    """Return configurations that differ in learning rate, guidance weight and seed."""
    precision = auto_precision(torch.device(device))
    base = replace(load_recipe("digits"), COMMON | RECIPES[recipe] | {"device": device, "precision": precision})
    return [
        replace(
            base,
            {
                "optim.lr": 1e-3 * (1 + number % 4),
                "guidance.weight": 1.0 + number // 4,
                "seed": number,
                "run_dir": str(folder / str(number)),
            },
        )
        for number in range(students)
    ]


class Group:
    """K students ready to step, as in a sweep's worker. The teacher is untrained, which costs the same time.

    Args:
        configs: one for each student.
        is_shared: whether the teacher runs once for all students, or inside each student's step, as in a single run.
    """

    def __init__(self, configs: Sequence[Config], is_shared: bool) -> None:
        self.device = torch.device(configs[0].device)
        splits = load_splits(configs[0])
        torch.manual_seed(0)
        teacher = untrained_teacher(configs[0], splits, self.device)
        shared = share(configs[0], splits, teacher, self.device, num_lanes=2 if is_shared else 1)
        self.loop = shared.loop([build_silent_lane(config, shared) for config in configs], InterruptFlag())
        self.steps_per_trial = configs[0].epochs * len(self.loop.batches)
        self.batches = self.endless()

    @property
    def first(self) -> Lane:
        return self.loop.lanes[0]

    def endless(self) -> Iterator[Batch]:
        epoch = 0
        while True:
            for lane in self.loop.lanes:
                lane.progress = Progress(epoch, epoch * len(self.loop.batches))
            self.loop.begin_epoch(epoch, self.loop.lanes)
            yield from self.loop.batches
            epoch += 1

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.loop.train_batch(self.loop.lanes, next(self.batches))
        self.synchronize()
        for lane in self.loop.lanes:  # a student that ended early would take no time
            lane.raise_error()

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def digest(self) -> str:
        """Return a digest of the first student's weights."""
        state = self.first.step.student.model.state_dict()
        return hashlib.sha256(b"".join(state[name].cpu().numpy().tobytes() for name in sorted(state))).hexdigest()[:12]

    def shares(self, steps: int) -> dict[str, float]:
        """Measure the shares of loading, teacher and one student in the time of a step."""
        seconds = [0.0, 0.0, 0.0]
        for _ in range(steps):
            marks = [time.perf_counter()]
            batch = next(self.batches)
            self.synchronize()
            marks.append(time.perf_counter())
            self.loop.teacher.prepare(batch)
            self.synchronize()
            marks.append(time.perf_counter())
            self.first.step(batch)
            self.synchronize()
            marks.append(time.perf_counter())
            seconds = [s + end - begin for s, begin, end in zip(seconds, marks, marks[1:], strict=False)]
        names = ("loading_share", "teacher_share", "student_share")
        return {name: part / sum(seconds) for name, part in zip(names, seconds, strict=True)}
