"""Builds the parts of a run from its configuration: images, loaders, networks."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lgfast import _extension, ranks
from lgfast.config import Config, from_dict, to_dict
from lgfast.data import EvalLoader, build_train_loader, load_dataset, load_files, split_holdout
from lgfast.data.dali_loader import require_dali
from lgfast.data.epoch_loader import EpochLoader
from lgfast.data.image_set import LabelledImages
from lgfast.fusion import fuse
from lgfast.guidance import GuidedStudent
from lgfast.guidance.teacher import TargetSource
from lgfast.models import create_model
from lgfast.models.taps import count_blocks, default_layers, resolve_layer
from lgfast.step.precision import auto_precision

HOLDOUT_SEED = 0  # one split for every run on the same images, whatever the run's own seed


@dataclass(frozen=True)
class Loaders:
    """Batches to train on and batches that select the best epoch; students of one group share them."""

    train: EpochLoader
    select: EvalLoader


@dataclass(frozen=True)
class DataSplits:
    """Images to train on, to select the best epoch on, and to report on: decoded, or files for the dali loader."""

    train: LabelledImages
    select: LabelledImages
    test: LabelledImages


def resolve_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cpu":
        return device
    if not torch.cuda.is_available():
        raise ValueError(f"device: {name} was asked for, but torch sees no CUDA device; use --device cpu")
    if ranks.was_launched_by_torchrun() and device.index is None:
        device = torch.device("cuda", ranks.local_rank())
    if device.index is not None:
        if device.index >= (count := torch.cuda.device_count()):
            raise ValueError(f"device: {device} was asked for, but torch sees {count} CUDA devices, from cuda:0 on")
        torch.cuda.set_device(device)  # streams and graphs are made on the current device
    if _extension.has_cuda_kernels():
        unserved = _extension.unserved_gpu_reason(torch.cuda.get_device_capability(device))
        if unserved is not None:
            raise ValueError(f"device: {unserved}, or set LGFAST_NATIVE=off to train without them")
    return device


def resolve_precision(config: Config) -> Config:
    """`precision=auto` for the configured device: bf16 where it has instructions for it, else fp32. A run keeps it."""
    if config.precision != "auto":
        return config
    return dataclasses.replace(config, precision=auto_precision(resolve_device(config.device)))


def load_images(config: Config, split: str) -> LabelledImages:
    """One split of the dataset, cut to the configured number of images; nothing is decoded for the dali loader."""
    data = config.data
    load = load_files if data.loader == "dali" else load_dataset
    images = load(data.dataset, data.root, split, download=data.download, skip_broken=data.skip_broken)
    limit = data.train_limit if split == "train" else data.test_limit
    return images.limit(limit) if 0 < limit < len(images) else images


def load_splits(config: Config) -> DataSplits:
    if config.data.loader == "dali":
        require_dali()
    train, test = load_images(config, "train"), load_images(config, "test")
    select = test
    if config.eval.protocol == "holdout":
        train, select = split_holdout(train, config.eval.holdout_fraction, HOLDOUT_SEED)
    if empty := train.empty_classes():
        names = ", ".join(empty[:3]) + (", ..." if len(empty) > 3 else "")
        warnings.warn(f"{train.name}: classes without a training image: {names} ({len(empty)} in all)", stacklevel=2)
    return DataSplits(train, select, test)


def describe_splits(config: Config, splits: DataSplits) -> str:
    """How many images do what, in a line; a recipe's limit, made for its own dataset, is named where it leaves out."""
    data, test = config.data, splits.test
    choosing = "they" if splits.select is test else f"{len(splits.select)}"
    num_read = len(splits.train) + (0 if splits.select is test else len(splits.select))
    used = {"train": num_read, "test": len(test)}
    limits = [
        f"data.{split}_limit={count}" for split, count in used.items() if count == getattr(data, f"{split}_limit")
    ]
    return (
        f"{data.dataset}: {len(splits.train)} images of {splits.train.num_classes} classes to train on, {len(test)} to "
        f"test, {choosing} choose the epoch" + (f" (limited by {' and '.join(limits)}; 0: all)" if limits else "")
    )


def build_loaders(config: Config, splits: DataSplits, device: torch.device) -> Loaders:
    """The loaders of a run, or of a group of runs that share views. The teacher's input is made if it is needed."""
    data = config.data
    reads_images = config.needs_teacher and config.teacher.targets != "offline"
    train = build_train_loader(
        data.loader,
        splits.train,
        config.augment if reads_images else dataclasses.replace(config.augment, teacher_size=0),
        batch_size=data.batch_size,
        seed=config.view_seed,
        workers=data.workers,
        rank=ranks.rank(),
        world=ranks.world(),
        device=device,
        dtype=torch.bfloat16 if config.precision == "bf16" else torch.float32,
        num_views=data.views,
    )
    if len(train) == 0:
        raise ValueError(
            f"data.batch_size: {data.batch_size} is more than the {len(splits.train)} training images; lower it"
        )
    return Loaders(train, eval_loader(config, splits.select, device))


def eval_loader(config: Config, images: LabelledImages, device: torch.device) -> EvalLoader:
    """Every image once, over all ranks."""
    return EvalLoader(
        images,
        config.augment,
        batch_size=config.data.eval_batch_size,
        workers=config.data.workers,
        rank=ranks.rank(),
        world=ranks.world(),
        device=device,
    )


def build_model(config: Config, num_classes: int) -> nn.Module:
    """The network to train, freshly initialised."""
    options = config.model
    overrides = options.shape_overrides()
    try:
        model = create_model(
            options.name,
            num_classes=num_classes,
            image_size=config.augment.image_size,
            drop_path_rate=options.drop_path_rate,
            **overrides,
        )
    except ValueError as error:
        if not overrides:
            raise
        asked = ", ".join(f"model.{name}={value}" for name, value in overrides.items())
        raise ValueError(f"{error} (asked for: {asked}; --set model.KEY=none leaves a key to the model)") from error
    if options.attention == "fused":
        fuse(model)
    return model


def build_student(config: Config, num_classes: int, teacher: TargetSource | None) -> GuidedStudent:
    """The network with its taps and projections; without them where there is no guidance."""
    model = build_model(config, num_classes)
    if config.distill.mode != "none" and hasattr(model, "set_distilled_training"):
        model.set_distilled_training(True)  # two heads in training, their mean in evaluation
    if teacher is None or config.guidance.weight == 0:
        return GuidedStudent(model)
    layers = guided_layers(config, model)
    channels = teacher.channels(config.augment.teacher_size)
    return GuidedStudent(model, layers, channels, config.augment.image_size, config.guidance.transform)


def guided_layers(config: Config, model: nn.Module) -> tuple[int, ...]:
    """The blocks to guide: those of the configuration, else the model's own."""
    if not config.guidance.student_layers:
        return default_layers(model)
    num_blocks = count_blocks(model)
    try:
        return tuple(resolve_layer(layer, num_blocks) for layer in config.guidance.student_layers)
    except ValueError as error:
        raise ValueError(
            f"guidance.student_layers: {config.model.name} has {num_blocks} blocks: {error}; "
            "--set guidance.student_layers= leaves the choice to the model"
        ) from error


def weights_metadata(config: Config, images: LabelledImages) -> dict[str, Any]:
    """What a weights file says of itself: enough to rebuild the model and to refuse other data."""
    return {
        "config": to_dict(config),
        "class_names": list(images.class_names),
        "content_hash": images.content_hash,
    }


def model_from_metadata(metadata: dict[str, Any]) -> nn.Module:
    """The network that a weights file belongs to, freshly initialised."""
    return build_model(from_dict(metadata["config"]), len(metadata["class_names"]))
