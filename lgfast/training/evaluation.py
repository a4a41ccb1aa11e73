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


def evaluate_classes(
    model: nn.Module, loader: Iterable[Batch], device: torch.device | str, class_names: Sequence[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """As `evaluate`, and the top-1 (percent) of every class that has an image, in float32."""
    meter = EvalMeter(device, len(class_names))
    judge([model], [meter], loader, device, torch.float32)
    by_class = zip(class_names, meter.read_classes(), strict=True)
    return meter.read(), {name: top1 for name, top1 in by_class if top1 == top1}


def evaluate_all(
    models: Sequence[nn.Module],
    loader: Iterable[Batch],
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
) -> list[dict[str, float]]:
    """`evaluate` of several models in one pass over the loader."""
    meters = [EvalMeter(device) for _ in models]
    judge(models, meters, loader, device, dtype)
    return [meter.read() for meter in meters]


@torch.no_grad()
def judge(
    models: Sequence[nn.Module],
    meters: Sequence[EvalMeter],
    loader: Iterable[Batch],
    device: torch.device | str,
    dtype: torch.dtype,
) -> None:
    """One pass over the loader, in eval mode; each model fills its meter."""
    was_training = [model.training for model in models]
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
