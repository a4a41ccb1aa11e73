"""Parameter groups, optimizer and learning-rate schedule of the recipe."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from lgfast.config import OptimConfig

NO_DECAY_NAMES = ("cls_token", "pos_embed", "distill_token", "dist_token")


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: not to biases, other 1-D tensors, class tokens and position embeddings."""
    return parameter.ndim > 1 and not name.endswith(".bias") and not any(part in name for part in NO_DECAY_NAMES)


def param_groups(named: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict]:
    """Two groups, with and without weight decay; frozen parameters are left out."""
    decay, no_decay = [], []
    for name, parameter in named:
        if parameter.requires_grad:
            (decay if decays(name, parameter) else no_decay).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": no_decay, "weight_decay": 0.0}]


def build_optimizer(named: Iterable[tuple[str, nn.Parameter]], config: OptimConfig) -> torch.optim.Optimizer:
    """Optimizer from timm's factory; AdamW and SGD in their fused form."""
    from timm.optim import create_optimizer_v2

    groups = param_groups(named, config.weight_decay)
    extra = {"fused": True} if config.name in ("adamw", "sgd") else {}
    return create_optimizer_v2(
        groups, config.name, lr=config.lr, weight_decay=config.weight_decay, momentum=config.momentum, **extra
    )


def learning_rate(config: OptimConfig, epoch: float, epochs: int) -> float:
    """Linear warm-up, then cosine to `min_lr`; the cosine is not shifted by the warm-up (recipe of the paper's code).

    Args:
        epoch: epochs done so far; whole numbers unless `per_step`.
        epochs: length of the run.
    """
    if epoch < config.warmup_epochs:
        start = config.warmup_factor * config.lr
        return start + epoch * (config.lr - start) / config.warmup_epochs
    return config.min_lr + 0.5 * (config.lr - config.min_lr) * (1 + math.cos(math.pi * epoch / epochs))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set every group's rate in place; a tensor rate keeps its storage, which a captured step reads."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr
