"""The gradient 1 of a loss, as a tensor that operations know by identity: a number on a device cannot be looked at
without a wait."""

import torch
from torch import Tensor

_known: dict[tuple[torch.dtype, torch.device], Tensor] = {}


def unit_gradient(loss: Tensor) -> Tensor:
    """Return the gradient to start the backward pass of a scalar loss from: `loss.backward(unit_gradient(loss))`.

    The values are those of `loss.backward()`. Operations whose stored gradients are final for it take them as they
    are. The first call for a dtype and device makes the tensor: call once before a CUDA graph is captured.

    >>> x = torch.ones(2, requires_grad=True)
    >>> loss = x.square().sum()
    >>> loss.backward(unit_gradient(loss))
    >>> x.grad.tolist()
    [2.0, 2.0]
    """
    key = loss.dtype, loss.device
    if key not in _known:
        _known[key] = torch.ones((), dtype=loss.dtype, device=loss.device)
    return _known[key]


def is_unit_gradient(gradient: Tensor) -> bool:
    """Whether this is the tensor of `unit_gradient`, never written to. Another tensor of the value 1 is not."""
    return gradient is _known.get((gradient.dtype, gradient.device)) and gradient._version == 0
