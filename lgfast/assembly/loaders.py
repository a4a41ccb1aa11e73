"""Build the loaders of a run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from lgfast.assembly.images import SplitImages
from lgfast.config import Config
from lgfast.data import EvalLoader, build_train_loader
from lgfast.data.batch import BatchStream
from lgfast.data.epoch_loader import EpochLoader
from lgfast.runtime import ranks


@dataclass(frozen=True)
class Loaders:
    """Batches to train on, and batches that select the best epoch; students of one group share them."""

    train: BatchStream
    select: EvalLoader


def train_loader(config: Config, images: SplitImages, device: torch.device) -> EpochLoader:
    """Build the loader of training batches, for one run or for runs that share views. It makes the teacher's input if
    needed."""
    data = config.data
    reads_images = config.needs_teacher and config.teacher.targets != "offline"
    loader = build_train_loader(
        data.loader,
        images,
        config.augment if reads_images else dataclasses.replace(config.augment, teacher_size=0),
        batch_size=data.batch_size,
        seed=config.view_seed,
        workers=data.workers,
        rank=ranks.rank(),
        world=ranks.world(),
        device=device,
        dtype=torch.bfloat16 if config.precision == "bf16" else torch.float32,
        num_views=data.views,
        balanced=data.balance == "sampler",
    )
    if len(loader) == 0:
        raise ValueError(f"data.batch_size: {data.batch_size} is more than the {len(images)} training images; lower it")
    return loader


def eval_loader(config: Config, images: SplitImages, device: torch.device) -> EvalLoader:
    """Build a loader that gives every image once, over all ranks."""
    return EvalLoader(
        images,
        config.augment,
        batch_size=config.data.eval_batch_size,
        workers=config.data.workers,
        rank=ranks.rank(),
        world=ranks.world(),
        device=device,
    )
