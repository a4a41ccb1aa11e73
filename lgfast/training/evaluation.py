"""Evaluate models over a loader."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from lgfast.data.batch import Batch
from lgfast.step.meters import EvalMeter


def evaluate(
    model: nn.Module, loader: Iterable[Batch], device: torch.device | str, dtype: torch.dtype = torch.float32
) -> dict[str, float]:
    """Compute top-1, top-5, balanced accuracy and macro-F1 (percent) and mean cross entropy over a loader, in eval
    mode.

    Args:
        model: the network to judge.
        loader: gives every image once.
        device: where the sums are kept.
        dtype: the type in which a float32 model computes, by autocast unless it is float32.
    """
    return evaluate_all([model], loader, device, dtype)[0]


def evaluate_logits(
    model: nn.Module, loader: Iterable[Batch], device: torch.device | str
) -> tuple[dict[str, float], Tensor, Tensor]:
    """Evaluate in float32; return logits [n, K] and labels [n] or [n, K] too, in the images' order, on the CPU."""
    meter = EvalMeter(device, keeps_logits=True)
    judge([model], [meter], loader, device, torch.float32)
    return meter.read(), *meter.read_logits()


def evaluate_all(
    models: Sequence[nn.Module],
    loader: Iterable[Batch],
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
) -> list[dict[str, float]]:
    """Evaluate several models in one pass over the loader."""
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
    """Pass over the loader once, in eval mode; each model fills its meter."""
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
