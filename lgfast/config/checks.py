"""What the values of a `Config` must satisfy; a message names the key, the value and the fix."""

from __future__ import annotations

import math
from typing import Any

POSITIVE = (
    "epochs", "data.batch_size", "data.eval_batch_size", "optim.lr", "optim.decay_epochs", "step.accumulate",
    "distill.temperature", "eval.every_epochs", "log.every_steps", "log.keep_checkpoints",
)  # fmt: skip
NOT_NEGATIVE = (
    "max_steps", "data.views", "data.workers", "data.train_limit", "data.test_limit", "guidance.weight", "optim.min_lr",
    "optim.weight_decay", "optim.warmup_epochs", "optim.clip_norm", "log.save_every_steps", "log.save_every_s",
)  # fmt: skip
SHARES = ("optim.decay_rate", "optim.label_smoothing", "model.drop_path_rate")
SEEDS = ("seed", "data.seed")


def check_values(config: Any) -> None:
    """Raise a ValueError for a value out of its range, and for one that does not go with another."""
    for key in POSITIVE:
        check_range(config, key, get(config, key) > 0, "a number above 0")
    for key in NOT_NEGATIVE:
        check_range(config, key, get(config, key) >= 0, "0 or more")
    for key in SHARES:
        check_range(config, key, 0 <= get(config, key) <= 1, "0 to 1")
    for key in SEEDS:
        check_range(config, key, -(2**63) <= (get(config, key) or 0) < 2**63, "a number of 64 bits")
    distill = config.distill
    if distill.cls_weight is None:
        check_range(config, "distill.weight", 0 <= distill.weight <= 1, "0 to 1, more with distill.cls_weight")
    check_range(config, "distill.weight", 0 <= distill.weight < math.inf, "0 or more")
    check_range(config, "distill.cls_weight", 0 <= (distill.cls_weight or 0) < math.inf, "0 or more, or none")
    if distill.standardise and distill.mode == "hard":
        raise ValueError("distill.standardise: a most likely class has no logits to standardise; use distill.mode=soft")
    check_range(config, "step.ema_decay", 0 <= config.step.ema_decay < 1, "0 <= decay < 1")
    check_range(config, "eval.holdout_fraction", 0 < config.eval.holdout_fraction < 1, "0 < fraction < 1")
    if config.data.batch_size % config.step.accumulate:
        raise ValueError(
            f"step.accumulate: {config.step.accumulate} does not divide data.batch_size, {config.data.batch_size}"
        )
    if config.needs_teacher and config.augment.teacher_size <= 0:
        raise ValueError(
            "augment.teacher_size: the teacher needs an input size, got 0; set it (32), "
            "or guidance.weight=0 and distill.mode=none to train without a teacher"
        )
    if obstacle := targets_obstacle(config):
        raise ValueError(f"teacher.targets: {config.teacher.targets} cannot be: {obstacle}")


def targets_obstacle(config: Any) -> str | None:
    """Why the teacher's targets cannot be computed ahead of the step as asked, or None."""
    targets, augment, is_batch = config.teacher.targets, config.augment, config.teacher.bn != "running"
    if targets == "live" or not config.needs_teacher:
        return None
    if augment.mixes:
        return "mixed images are new every time; set augment.mixup_alpha=0 and augment.cutmix_alpha=0"
    if targets == "cached":
        if config.data.views == 0:
            return "only views that recur can be kept; set data.views=K"
        return "a map depends on the batch's other images; use teacher.bn=running" if is_batch else None
    if config.distill.mode != "none":
        return "logits of whole images are no targets for crops; use distill.mode=none"
    if augment.weak:
        return "maps of whole images have no black border to shift in; use augment.weak=false"
    return "one process computes the maps; use teacher.bn=batch or running" if config.teacher.bn == "synced" else None


def check_range(config: Any, key: str, is_inside: bool, expected: str) -> None:
    if not is_inside:
        raise ValueError(f"{key}: expected {expected}, got {get(config, key)}")


def get(config: Any, key: str) -> Any:
    """The value at a dotted key."""
    for part in key.split("."):
        config = getattr(config, part)
    return config
