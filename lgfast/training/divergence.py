"""Raise an error for a loss that is not finite, with advice for the next run."""

from __future__ import annotations

from lgfast.config import Config, get

ABSURD = 1e6  # a loss with this weight drowns all others


class NonFiniteLossError(ValueError):
    """The loss became NaN or infinite. The last good checkpoint is kept."""


def remedy(config: Config) -> str:
    """Advise what to lower: a key that is far beyond what trains, else the learning rate."""
    for key in ("guidance.weight", "distill.weight", "distill.cls_weight"):
        if (weight := get(config, key) or 0.0) >= ABSURD:
            return f"lower {key}, {weight:g}"
    optim = config.optim
    if optim.lr * optim.weight_decay >= 1:
        return (
            f"lower optim.weight_decay, {optim.weight_decay:g}: a step multiplies weights by 1 - lr x weight_decay, "
            f"{1 - optim.lr * optim.weight_decay:g}"
        )
    return "lower optim.lr, set optim.clip_norm, or use precision=fp32"
