"""Exponential moving average of a model's weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """average = average + (1 - d) (weights - average), after every step t = 1, 2, ..., on the device.

    d is the decay; with warm-up min(decay, (1 + t) / (10 + t)), so that a short run's average soon forgets its
    beginning.

    Args:
        model: the model that is trained; the average starts at its weights.
        decay: weight of the past, as 0.9998.
        warmup: begin with a smaller decay.
    Attributes:
        model: a model with the averaged weights, and the trained model's current buffers.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool = False) -> None:
        self.source = model
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        for module in self.model.modules():
            module._forward_hooks.clear()  # the taps of the trained model
        device = next(model.parameters()).device
        self.share = torch.tensor(1 - decay, device=device)
        self.num_updates = torch.zeros((), device=device) if warmup else None

    @torch.no_grad()
    def update(self) -> None:
        averages = list(self.model.parameters())
        differences = torch._foreach_sub(list(self.source.parameters()), averages)
        torch._foreach_mul_(differences, self.next_share())
        torch._foreach_add_(averages, differences)
        for average, buffer in zip(self.model.buffers(), self.source.buffers(), strict=True):
            average.copy_(buffer)

    def next_share(self) -> Tensor:
        """Return 1 - d of the next update, a scalar on the device."""
        if self.num_updates is None:
            return self.share
        self.num_updates += 1
        return torch.maximum(self.share, 9 / (10 + self.num_updates))

    def state_dict(self) -> dict[str, Any]:
        """Return what an exact continuation needs."""
        count = {} if self.num_updates is None else {"num_updates": self.num_updates}
        return {"model": self.model.state_dict()} | count

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.model.load_state_dict(state["model"])
        if self.num_updates is not None:
            self.num_updates.copy_(state["num_updates"])
