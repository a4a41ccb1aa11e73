"""A small model, and steps of training it, the same for every optimizer."""

import torch
from torch import nn


def small_model():
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3))


def groups(model):
    return [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]


def train(model, optimizer, steps, first=0, frozen=()):
    """Parameters whose number is among `frozen` get no gradient."""
    for step in range(first, first + steps):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        for number in frozen:
            list(model.parameters())[number].grad = None
        optimizer.step()


def assert_same_weights(ours, plain):
    """Assert that weights agree to the rounding of float32 over tens of steps."""
    torch.testing.assert_close(ours.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-6)
