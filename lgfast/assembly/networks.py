"""Build the networks of a run, and describe them in weights files."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from lgfast.assembly.cost import check_cost
from lgfast.assembly.initial import start_model
from lgfast.config import Config, from_dict, to_dict
from lgfast.data.image_set import LabelledImages
from lgfast.fusion import fuse, fuse_layers
from lgfast.fusion.layers import fused_layers_pay
from lgfast.guidance import GuidedStudent
from lgfast.guidance.teacher import TargetSource
from lgfast.models import create_model
from lgfast.models.impulse import init_impulse
from lgfast.models.layer_groups import layer_scales
from lgfast.models.mimetic import init_mimetic
from lgfast.models.patches import covered_sizes
from lgfast.models.taps import (
    ImageSizeError,
    count_blocks,
    default_layers,
    resolve_layer,
    run_zero_image,
    zero_image,
)
from lgfast.optim.build import build_optimizer
from lgfast.records.checkpoint import CheckpointError, check_finite, find_weights, is_names, load_weights, read_weights
from lgfast.runtime import ranks

INITS = {"mimetic": init_mimetic, "impulse": init_impulse}


def build_model(config: Config, num_classes: int) -> nn.Module:
    """Build the network to train, with fresh weights."""
    options = config.model
    overrides = options.shape_overrides()
    channels = {} if config.channels == 3 else {"in_chans": config.channels}
    try:
        model = create_model(
            options.name,
            num_classes=num_classes,
            image_size=config.augment.image_size,
            drop_path_rate=options.drop_path_rate,
            **channels,
            **overrides,
        )
    except ValueError as error:
        given = ", ".join(f"model.{name}={value}" for name, value in overrides.items())
        hint = f" (asked for: {given}; --set model.KEY=none leaves a key to the model)" if overrides else ""
        raise ValueError(f"model.name: {error}{hint}") from error
    if options.init != "own":
        INITS[options.init](model)
    if options.attention == "fused":
        fuse(model)
    return model


def build_student(config: Config, num_classes: int, teacher: TargetSource | None) -> GuidedStudent:
    """Build the network with its taps and projections; without them where there is no guidance."""
    check_cost(config, num_classes)
    model = build_model(config, num_classes)
    check_covered(config, model)
    compiled = config.step.compile == "on"
    if config.step.fused_layers == "on":
        fuse_model_layers(model)
    if config.distill.mode != "none" and hasattr(model, "set_distilled_training"):
        model.set_distilled_training(True)  # training has two heads, evaluation their mean
    size, transform = config.augment.image_size, config.guidance.transform
    try:
        check_batch_norm(config, model)
        if teacher is None or config.guidance.weight == 0:
            run_zero_image(model, size)
            return GuidedStudent(model, compiled=compiled)
        layers = guided_layers(config, model)
        channels = teacher.channels(config.augment.teacher_size)
        learned = config.guidance.taps == "learned"
        return GuidedStudent(model, layers, channels, size, transform, learned=learned, compiled=compiled)
    except ImageSizeError as error:
        raise ValueError(f"augment.image_size: model.name={error}") from error


def build_trained_part(
    config: Config, images: LabelledImages, teacher: TargetSource | None, device: torch.device, is_new: bool = True
) -> tuple[GuidedStudent, torch.optim.Optimizer, str]:
    """Build a fresh student with its optimizer; also return a line about the weights it starts from, "" for its own.

    Args:
        images: the training images, which say the classes.
        teacher: gives the widths of the maps to imitate; None: there is none.
        is_new: load the weights that the run starts from.
    """
    student = build_student(config, images.num_classes, teacher)
    said = start_model(student.model, config, images.class_names) if is_new else ""
    student.freeze(config.optim.freeze)
    student.to(device)
    if config.step.fused_layers == "auto" and config.precision == "fp32" and fused_layers_pay(device, torch.float32):
        fuse_layers(student.model)
    scales = layer_scales(student.model, config.optim.layer_decay) if config.optim.layer_decay < 1 else {}
    optimizer = build_optimizer(
        student.named_parameters(),
        config.optim,
        config.precision == "fp16-amp",  # its gradients overflow
        {f"model.{name}": scale for name, scale in scales.items()},
    )
    return student, optimizer, said


def check_covered(config: Config, model: nn.Module) -> None:
    """Raise a ValueError where the patches leave out rows and columns of every image."""
    size = config.augment.image_size
    if near := covered_sizes(model, size):
        raise ValueError(
            f"augment.image_size: the patches of {config.model.name} leave rows and columns of images of {size}x{size} "
            f"out; use {' or '.join(map(str, near))}, or another model.patch_size"
        )


def check_batch_norm(config: Config, model: nn.Module) -> None:
    """Raise a ValueError where a forward pass with one image leaves a BatchNorm of the student a single value."""
    accumulate, world = config.step.accumulate, ranks.world()
    if config.data.batch_size // accumulate // world > 1:
        return
    run_zero_image(model, config.augment.image_size)
    way_on = f"use {2 * accumulate * world} or more (step.accumulate={accumulate}, {world} ranks), or another model"
    with torch.random.fork_rng(devices=[]), refusing_single_values(config.model.name, way_on):
        copy.deepcopy(model).train()(zero_image(model, config.augment.image_size))


@contextlib.contextmanager
def refusing_single_values(name: str, way_on: str) -> Iterator[None]:
    """Name the key to change where torch's BatchNorm refuses to take statistics of a single value a channel."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            f"data.batch_size: {name} normalises over a batch, in which one image gives it a single value; {way_on}"
        ) from None


def fuse_model_layers(model: nn.Module) -> None:
    report = fuse_layers(model)
    if not report.fused:
        raise ValueError(f"step.fused_layers: {report}; use step.fused_layers=off")


def guided_layers(config: Config, model: nn.Module) -> tuple[int, ...]:
    """Return the blocks to guide: those of the configuration, else the model's default."""
    num_blocks = count_blocks(model)
    if not config.guidance.student_layers:
        return tuple(range(num_blocks)) if config.guidance.taps == "learned" else default_layers(model)
    try:
        return tuple(resolve_layer(layer, num_blocks) for layer in config.guidance.student_layers)
    except ValueError as error:
        raise ValueError(
            f"guidance.student_layers: {config.model.name} has {num_blocks} blocks: {error}; "
            "--set guidance.student_layers= leaves the choice to the model"
        ) from error


def weights_metadata(config: Config, images: LabelledImages) -> dict[str, Any]:
    """Return a weights file's metadata: enough to rebuild the model and to refuse other data."""
    return {
        "config": to_dict(config),
        "class_names": list(images.class_names),
        "content_hash": images.content_hash,
    }


class Trained(NamedTuple):
    """The content of a checkpoint."""

    model: nn.Module
    num_classes: int
    class_names: tuple[str, ...]  # () where the file holds none
    config: Config
    about: str = ""  # says which weights these are, where a file holds several
    content_hash: str = ""  # the training images' hash; "" where it is not known


def load_trained(source: Path | str) -> Trained:
    """Load network, classes and configuration from a run folder, checkpoint folder or weights file of lgfast.

    Raises:
        CheckpointError: the file is missing, damaged, or not written by lgfast.
    """
    path = find_weights(source)
    weights, header = read_weights(path)
    config, class_names = (
        (header.get(name) for name in ("config", "class_names")) if isinstance(header, dict) else ({}, [])
    )
    if not isinstance(config, dict) or not is_names(class_names):
        raise CheckpointError(
            f"{path} has no header of lgfast with its configuration and classes; train it with python -m lgfast.train"
        )
    try:
        trained = from_dict(config)
        model = build_model(trained, len(class_names))
    except ValueError as error:
        raise CheckpointError(f"{path}: the header's configuration is not one of this version: {error}") from error
    load_weights(model, weights, path)
    check_finite(weights, path)
    content_hash = str(header.get("content_hash", ""))
    return Trained(model, len(class_names), tuple(class_names), trained, content_hash=content_hash)
