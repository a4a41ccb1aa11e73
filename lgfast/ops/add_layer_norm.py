"""add_layer_norm: residual addition, stochastic depth and LayerNorm, forward and backward each in one pass."""

import functools

import torch
from torch import Tensor

from lgfast import _extension
from lgfast.ops import reference
from lgfast.ops.gradient import register_gradient
from lgfast.ops.inputs import check_floating, is_autocast
from lgfast.ops.reference.add_layer_norm import add_layer_norm_bwd, add_layer_norm_fwd
from lgfast.ops.transforms import needs_composition, register_vmap_loop

MAX_CHANNELS = 512


def add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    drop_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The residual stream after a branch, and its normalisation for the next one.

        y = residual + drop_scale x,  out = (y - mean(y)) / sqrt(var(y) + eps) weight + bias

    Args:
        x: [B, ..., C], the branch; float32, bfloat16 or float16 (on CPU also float64), CPU or CUDA.
        residual: like x. weight, bias: [C]. All of one dtype; under autocast they are brought to the widest.
        eps: added to the variance.
        drop_scale: [B], one factor a sample, as timm's DropPath draws it (0 or 1 / keep probability). None: 1.
    Returns:
        y and out, like x. Sums are taken in float32 (float64 for float64) of y as it is stored. The gradient of y takes
        up both uses. Two runs of forward and backward agree bit for bit. The kernels take C that are multiples of 8 up
        to 512; other inputs (`add_layer_norm_unsupported_reason`), and torch.func.grad and forward mode, run the
        composition in PyTorch.
    Raises:
        ValueError: shapes, dtypes or devices do not match, or a dtype is none of the above.
        RuntimeError: backward through the kernels with create_graph=True; they have no second derivative.
    Source: stochastic depth, Huang et al., ECCV 2016 (arXiv 1603.09382), as in timm.

    >>> x, residual = torch.randn(2, 2, 197, 64).unbind(0)
    >>> stream, normalised = add_layer_norm(x, residual, torch.ones(64), torch.zeros(64))
    >>> stream.shape, normalised.shape
    (torch.Size([2, 197, 64]), torch.Size([2, 197, 64]))
    """
    check_floating("add_layer_norm", x=x, residual=residual, weight=weight, bias=bias)
    tensors = [x, residual, weight, bias] + ([] if drop_scale is None else [drop_scale])
    if is_autocast(x):  # LayerNorm's own rule too: weights are float32 there
        dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
        tensors = [tensor.to(dtype) for tensor in tensors]
    _check(*tensors)
    x, residual, weight, bias, *scales = tensors
    drop_scale = scales[0] if scales else None
    if add_layer_norm_unsupported_reason(x) is not None or needs_composition():
        with torch.autocast(x.device.type, enabled=False):
            return reference.add_layer_norm(x, residual, weight, bias, eps, drop_scale)
    y, out, _, _ = _add_layer_norm_fwd(x, residual, weight, bias, drop_scale, eps)
    return y, out


def add_layer_norm_unsupported_reason(x: Tensor) -> str | None:
    """Why the kernels of `add_layer_norm` do not take x [B, ..., C], or None where they do.

    >>> add_layer_norm_unsupported_reason(torch.randn(2, 10, 36)) is None
    False
    """
    if x.dtype == torch.float64 and x.device.type == "cuda":
        return "dtype must be float32, bfloat16 or float16 on CUDA, got torch.float64"
    return add_layer_norm_channels_reason(x.shape[-1])


def add_layer_norm_channels_reason(channels: int) -> str | None:
    """Why the kernels of `add_layer_norm` do not take this number of channels, or None where they do."""
    if channels % 8 or not 8 <= channels <= MAX_CHANNELS:
        return f"channels must be a multiple of 8 from 8 to {MAX_CHANNELS}, got {channels}"
    return None


def _check(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, drop_scale: Tensor | None = None) -> None:
    if x.dim() < 2 or x.shape != residual.shape:
        raise ValueError(
            "add_layer_norm: x and residual must have one shape [B, ..., C], "
            f"got {list(x.shape)} and {list(residual.shape)}"
        )
    expected = {"weight": (weight, x.shape[-1:]), "bias": (bias, x.shape[-1:])}
    if drop_scale is not None:
        expected["drop_scale"] = (drop_scale, x.shape[:1])
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise ValueError(
                f"add_layer_norm: {name} must be {list(shape)} for x {list(x.shape)}, got {list(tensor.shape)}"
            )
    for name, other in {"residual": residual, "weight": weight, "bias": bias, "drop_scale": drop_scale}.items():
        if other is not None and (other.dtype != x.dtype or other.device != x.device):
            raise ValueError(
                f"add_layer_norm: {name} must be {x.dtype} on {x.device} like x, "
                f"got {other.dtype} on {other.device}; cast or move one of them"
            )


@torch.library.register_fake("lgfast::add_layer_norm_fwd")
def _(x, residual, weight, bias, drop_scale, eps):
    dtype = torch.promote_types(x.dtype, torch.float32)
    statistics = [x.new_empty(x.shape[:-1], dtype=dtype) for _ in range(2)]
    return x.new_empty(x.shape), x.new_empty(x.shape), *statistics


@torch.library.register_fake("lgfast::add_layer_norm_bwd")
def _(dout, dy, y, weight, drop_scale, mean, rstd):
    dx = y.new_empty(0 if drop_scale is None else y.shape)
    return dx, y.new_empty(y.shape), y.new_empty((2, y.shape[-1]))


def _setup_context(ctx, inputs, output):
    x, _, weight, _, drop_scale, _ = inputs
    y, _, mean, rstd = output
    ctx.save_for_backward(y, weight, drop_scale, mean, rstd, x if ctx.needs_input_grad[4] else None)
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)


def _backward(ctx, dy, dout, *_):
    if torch.is_grad_enabled():
        raise RuntimeError("add_layer_norm has no second derivative; call backward without create_graph=True")
    if dy is None and dout is None:
        return (None,) * 6
    y, weight, drop_scale, mean, rstd, x = ctx.saved_tensors
    dout = torch.zeros_like(y) if dout is None else dout
    dx, dresidual, dparams = torch.ops.lgfast.add_layer_norm_bwd(dout, dy, y, weight, drop_scale, mean, rstd)
    ddrop_scale = None
    if x is not None:
        dtype = torch.promote_types(x.dtype, torch.float32)
        ddrop_scale = (dresidual.to(dtype) * x).flatten(1).sum(1).to(x.dtype)
    return dresidual if drop_scale is None else dx, dresidual, *dparams.unbind(), ddrop_scale, None


_add_layer_norm_fwd = register_gradient("add_layer_norm_fwd", _backward, _setup_context)
register_vmap_loop("add_layer_norm_fwd")
register_vmap_loop("add_layer_norm_bwd")
_extension.register_reference("add_layer_norm_fwd", add_layer_norm_fwd)
_extension.register_reference("add_layer_norm_bwd", add_layer_norm_bwd)
