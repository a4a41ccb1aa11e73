"""Make one training step of every provider that bench_train_step times."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional as F

from benchmarks.peers import PEERS
from benchmarks.train_setup import Setup
from lgfast.config import Config, LogConfig, replace
from lgfast.data.batch import Batch
from lgfast.records.run_log import MetricsLog
from lgfast.runtime.allocator import keep_freed_memory
from lgfast.runtime.interrupt import InterruptFlag
from lgfast.step import TrainMeter
from lgfast.training.lane import Lane
from lgfast.training.loop import Loop
from lgfast.training.saving import SilentSaver


def bare_call(setup: Setup, precision: str) -> Callable[[], object]:
    """Return a call that does TrainStep's arithmetic inline."""
    step = setup.train_step(precision)
    student, teacher, optimizer, batch = step.precision, step.teacher, step.optimizer, setup.batch
    weight = step.objective.guidance_weight

    def call():
        targets = None if teacher is None else teacher.start(batch)
        optimizer.zero_grad()
        logits, guidance = student(batch.images, targets, weight)
        loss = F.cross_entropy(logits.float(), batch.labels)
        loss = loss if guidance is None else loss + guidance.weighted
        student.backward(loss)
        optimizer.step()
        return loss.detach()

    return call


def loop_call(setup: Setup, precision: str) -> Callable[[], object]:
    """Return a call that puts one batch through the loop, with its meters, schedule and a log line every 50 steps."""
    step, batch = setup.train_step(precision), setup.batch
    config = replace(Config(log=LogConfig(tensorboard=False)), {"optim.per_step": True, "data.batch_size": 1})
    folder = tempfile.TemporaryDirectory()
    loader = EndlessLoader(batch)
    lane = Lane(config, step, len(loader), SilentSaver(), MetricsLog(Path(folder.name), config.log.tensorboard))
    loop = Loop([lane], loader, [], step.teacher, InterruptFlag())
    loop.begin_epoch(0, loop.lanes)

    def call(folder=folder):
        loop.train_batch(loop.lanes, next(loader))

    call.eager = partial(step.run, batch)
    return call


class EndlessLoader:
    """Gives the same batch again and again, in an epoch too long to end."""

    def __init__(self, batch: Batch) -> None:
        self.batch, self.batch_size = batch, len(batch.images)

    def __len__(self) -> int:
        return 1 << 40

    def __next__(self) -> Batch:
        return self.batch

    def seek(self, epoch: int, position: int) -> None:
        """Do nothing: every epoch is the same."""


STEPS = {  # variants of lgfast's own step -> options of StepConfig
    "lgfast": {},
    "lgfast-compile": {"compile": "on"},
    "lgfast-fused-layers": {"fused_layers": "on"},
    "lgfast-fused-layers-compile": {"fused_layers": "on", "compile": "on"},
}
PROVIDERS = (*PEERS, "bare", "loop", *STEPS)


def make_call(provider: str, setup: Setup, precision: str) -> Callable[[], object]:
    """Return a call that takes one training step. It returns the loss if the provider gives it."""
    batch = setup.batch
    if provider in PEERS:
        peer = PEERS[provider](setup.student, setup.teacher, setup.shape.layers, precision)
        inputs = (batch.images, batch.teacher_images, batch.labels)
        call = partial(peer, *inputs)
        call.eager = partial(getattr(peer, "eager", peer), *inputs)
        return call
    if provider == "bare":
        return bare_call(setup, precision)
    if provider == "loop":
        return loop_call(setup, precision)
    step = setup.train_step(precision, **STEPS[provider])

    call = partial(step, batch)
    call.eager = partial(step.run, batch)  # to measure memory: a graph keeps its own for itself
    return call


def make_alone(provider: str, arguments: tuple, precision: str) -> Callable[[], object]:
    """Return `make_call`'s call, in a process of the provider's own. `arguments` are those of Setup."""
    if provider not in PEERS:
        keep_freed_memory()  # as a run of lgfast does
    return make_call(provider, Setup(*arguments), precision)


def check(setup: Setup, precision: str) -> None:
    """Check that the step's first loss is that of the paper's step."""
    expected = make_call("paper", setup, "fp32")()
    step = setup.train_step(precision)
    step(setup.batch)
    bound = 1e-5 if precision == "fp32" else 2**-6  # float32 sums in another order; a few bfloat16 roundings
    torch.testing.assert_close(
        torch.tensor(step.meter.read(TrainMeter.WINDOW)["loss"]), expected.cpu(), rtol=bound, atol=0, check_dtype=False
    )
