"""Tiny runs for tests: digits at 8x8, a three-block student, a ResNet-8 teacher, seconds on one core."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import torch

from lgfast.assembly.images import load_splits
from lgfast.assembly.lanes import build_lane, share
from lgfast.config import Config, load_recipe, replace
from lgfast.runtime.interrupt import InterruptFlag
from lgfast.training.loop import Loop
from tests.processes import TrainProcess

TINY = {
    "epochs": 3,
    "data.train_limit": 120,
    "data.test_limit": 60,
    "data.batch_size": 16,
    "eval.holdout_fraction": 0.2,
    "augment.image_size": 8,
    "augment.teacher_size": 8,
    "model.embed_dim": 32,
    "model.depth": 3,
    "model.drop_path_rate": 0.2,  # so that the order of random numbers matters
    "guidance.student_layers": "0,1,2",
    "log.every_steps": 2,
    "log.save_every_s": 0,
    "log.tensorboard": "false",
    "log.report": "false",
    "device": "cpu",
    "precision": "fp32",
}
TIMING = ("seconds", "images_per_s")


def tiny_config(tmp_path: Path, **changes) -> Config:
    """A guided run in tmp_path/run, its teacher cached in tmp_path/cache."""
    places = {
        "run_dir": str(tmp_path / "run"),
        "teacher.cache": str(tmp_path / "cache"),
        "teacher.recipe": teacher(tmp_path),
    }
    return replace(load_recipe("digits"), TINY | {key: str(place) for key, place in places.items()} | changes)


def small_loop(config: Config, interrupt: InterruptFlag | None = None) -> Loop:
    """The loop of an unguided run, as `train_run` makes it; its one lane is `loop.lanes[0]`."""
    shared = share(config, load_splits(config), None, torch.device("cpu"), num_lanes=1)
    return shared.loop([build_lane(config, shared)], interrupt or InterruptFlag())


def teacher(tmp_path: Path) -> str:
    """A recipe file of a teacher that trains for one epoch."""
    path = tmp_path / "teacher.yaml"
    path.write_text("base: digits-resnet8\nname: tiny-teacher\nepochs: 1\n")
    return str(path)


def wait_for_step(run_dir: Path, step: int, process: subprocess.Popen | TrainProcess, timeout: float = 300) -> None:
    """Wait until the run has logged the given step."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"the run ended before step {step}:\n{process.communicate()}")
        if any(row["step"] >= step for row in metrics(run_dir)):
            return
        time.sleep(0.005)
    process.kill()
    raise AssertionError(f"step {step} was not reached in {timeout} s")


def metrics(run_dir: Path) -> list[dict]:
    """Rows of metrics.jsonl without wall-clock figures; a line still being written is left out."""
    path = Path(run_dir) / "metrics.jsonl"
    if not path.exists():
        return []
    lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [{k: v for k, v in json.loads(line).items() if k not in TIMING} for line in lines]


class StopAt(InterruptFlag):
    """A flag that asks to stop when it is read for the n-th time."""

    def __init__(self, count):
        self.count = count
        super().__init__()

    @property
    def requested(self):
        self.count -= 1
        return self.count < 0

    @requested.setter
    def requested(self, value):
        pass
