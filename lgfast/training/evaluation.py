"""Top-1, top-5 and loss of models over a loader."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from lgfast.data.batch import Batch
from lgfast.step.meters import EvalMeter


def evaluate(
    model: nn.Module, loader: Iterable[Batch], device: torch.device | str, dtype: torch.dtype = torch.float32
) -> dict[str, float]:
    """Top-1, top-5 (percent) and mean cross entropy over a loader, in eval mode.

    Args:
        dtype: what a float32 model computes in, by autocast unless float32.
    """
    return evaluate_all([model], loader, device, dtype)[0]


@torch.no_grad()
def evaluate_all(
    models: Sequence[nn.Module],
    loader: Iterable[Batch],
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
) -> list[dict[str, float]]:
    """`evaluate` of several models in one pass over the loader."""
    was_training = [model.training for model in models]
    meters = [EvalMeter(device) for _ in models]
    autocast = torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32)
    for model in models:
        model.eval()
    for batch in loader:
        for model, meter in zip(models, meters, strict=True):
            with autocast:
                logits = model(batch.images)
            meter.update(logits, batch.labels)
    for model, training in zip(models, was_training, strict=True):
        model.train(training)
    return [meter.read() for meter in meters]
