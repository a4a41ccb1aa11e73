"""Exponential moving average of a model's weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class WeightAverage:
    """average = average + (1 - decay) (weights - average), after every step, on the device.

    Args:
        model: the model that is trained; the average starts at its weights.
        decay: weight of the past, as 0.9998.
    Attributes:
        model: a model with the averaged weights, and the trained model's current buffers.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.source = model
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        for module in self.model.modules():
            module._forward_hooks.clear()  # the taps of the trained model
        self.share = torch.tensor(1 - decay, device=next(model.parameters()).device)

    @torch.no_grad()
    def update(self) -> None:
        averages = list(self.model.parameters())
        differences = torch._foreach_sub(list(self.source.parameters()), averages)
        torch._foreach_mul_(differences, self.share)
        torch._foreach_add_(averages, differences)
        for average, buffer in zip(self.model.buffers(), self.source.buffers(), strict=True):
            average.copy_(buffer)
