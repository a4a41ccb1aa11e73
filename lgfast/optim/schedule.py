"""Compute learning rates over a run."""

from __future__ import annotations

import math

from lgfast.config import OptimConfig


def learning_rate(config: OptimConfig, epoch: float, epochs: int) -> float:
    """Return the learning rate after `epoch` of `epochs`, by `config.schedule`.

    During the warm-up it rises linearly from warmup_factor * lr to lr. Afterwards, with p the share that is done of the
    epochs after the warm-up, and lr falling to min_lr:

        cosine    1 + cos(pi epoch / epochs), not shifted by the warm-up: the recipe of the paper's code
        linear    1 - p
        constant  lr
        step      lr * decay_rate ** (number of whole decay_epochs since the warm-up), not below min_lr
        onecycle  1 + cos(pi p), after a warm-up that is half a cosine too (PyTorch's OneCycleLR)
        wsd       lr until the last decay_epochs, in which it falls linearly (warm-up, stable, decay)

    Args:
        epoch: the epochs done so far; whole numbers unless `per_step`.
        epochs: the length of the run.

    >>> config = OptimConfig(lr=1e-3, min_lr=0.0, warmup_epochs=10, warmup_factor=0.0)
    >>> [round(learning_rate(config, epoch, epochs=100), 6) for epoch in (0, 5, 10, 50, 100)]
    [0.0, 0.0005, 0.000976, 0.0005, 0.0]
    """
    warmup, peak, low = config.warmup_epochs, config.lr, config.min_lr
    if epoch < warmup:
        done = epoch / warmup
        if config.schedule == "onecycle":
            done = 0.5 * (1 - math.cos(math.pi * done))
        return peak * (config.warmup_factor + (1 - config.warmup_factor) * done)
    return low + (peak - low) * SHAPES[config.schedule](config, epoch, epochs)


def half_cosine(share: float) -> float:
    """Fall from 1 to 0 as the share goes from 0 to 1."""
    return 0.5 * (1 + math.cos(math.pi * share))


def share_after_warmup(config: OptimConfig, epoch: float, epochs: int) -> float:
    """Return the share that is done of the epochs after the warm-up, 0 to 1."""
    return (epoch - config.warmup_epochs) / max(epochs - config.warmup_epochs, 1)


def steps(config: OptimConfig, epoch: float, epochs: int) -> float:
    rate = config.lr * config.decay_rate ** ((epoch - config.warmup_epochs) // config.decay_epochs)
    return max(0.0, (rate - config.min_lr) / (config.lr - config.min_lr)) if config.lr != config.min_lr else 0.0


def stable_then_decay(config: OptimConfig, epoch: float, epochs: int) -> float:
    return min(1.0, (epochs - epoch) / config.decay_epochs)


# Height between min_lr (0) and lr (1) after the warm-up.
SHAPES = {
    "cosine": lambda config, epoch, epochs: half_cosine(epoch / epochs),
    "linear": lambda config, epoch, epochs: 1 - share_after_warmup(config, epoch, epochs),
    "constant": lambda config, epoch, epochs: 1.0,
    "step": steps,
    "onecycle": lambda config, epoch, epochs: half_cosine(share_after_warmup(config, epoch, epochs)),
    "wsd": stable_then_decay,
}
