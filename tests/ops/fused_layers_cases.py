"""Inputs and bounds of the add_layer_norm and bias_gelu tests, on the CPU, on the GPU and in the emulation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.rounding import assert_rounded, truth

EPS = 1e-6


def norm_inputs(batch, tokens, channels, dtype=torch.float32, device="cpu", drop=True) -> list[Tensor | None]:
    """x, residual [B, N, C], weight, bias [C]: leaves; and drop_scale [B], zeros and 1 / 0.75, or None."""
    x, residual = torch.randn(batch, tokens, channels), 2 * torch.randn(batch, tokens, channels) + 0.5
    weight, bias = 1 + 0.1 * torch.randn(channels), 0.1 * torch.randn(channels)
    leaves = [tensor.to(device, dtype).requires_grad_() for tensor in (x, residual, weight, bias)]
    scale = (torch.arange(batch) % 3 > 0) / 0.75
    return [*leaves, scale.to(device, dtype) if drop else None]


def compose_norm(x, residual, weight, bias, drop_scale):
    """The composition of timm's block, written from torch's functions."""
    y = residual + (x if drop_scale is None else x * drop_scale[:, None, None])
    return y, F.layer_norm(y, weight.shape, weight, bias, EPS)


def compose_gelu(x, bias):
    return F.gelu(x + bias)


def in_dtype(tensors, dtype):
    """Detached copies; those that received gradients still do."""
    return [
        None if tensor is None else tensor.detach().to(dtype).requires_grad_(tensor.requires_grad) for tensor in tensors
    ]


def results(op, inputs, douts) -> list[Tensor]:
    """Outputs and the gradients of every leaf; an output whose gradient is None is not differentiated."""
    outputs = op(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    pairs = [(out, dout) for out, dout in zip(outputs, douts, strict=True) if dout is not None]
    leaves = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
    grads = torch.autograd.grad([out for out, _ in pairs], leaves, [dout for _, dout in pairs])
    return [*(out.detach() for out in outputs), *grads]


def assert_matches(actual: list[Tensor], composition, inputs, douts) -> None:
    """Every result has the dtype of plain PyTorch's, and errs from float64 by no more than rounding explains."""
    plain = results(composition, in_dtype(inputs, inputs[0].dtype), douts)
    wide, wide_douts = in_dtype(inputs, torch.float64), [None if dout is None else dout.double() for dout in douts]
    expected = truth(lambda: results(composition, wide, wide_douts), inputs[0].dtype)
    for i, (value, plain_value, expected_value) in enumerate(zip(actual, plain, expected, strict=True)):
        assert value.dtype == plain_value.dtype
        assert_rounded(value, expected_value, f"result {i}")
