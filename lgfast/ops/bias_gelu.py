"""bias_gelu: bias and exact GELU, whose backward also sums the bias gradient."""

import torch
from torch import Tensor

from lgfast import _extension
from lgfast.ops import reference
from lgfast.ops.gradient import register_gradient
from lgfast.ops.inputs import check_floating, is_autocast
from lgfast.ops.reference.bias_gelu import bias_gelu_bwd, bias_gelu_fwd
from lgfast.ops.transforms import needs_composition, register_vmap_loop


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """The exact GELU of x + bias, the activation between the two projections of an MLP.

        out = z cdf(z),  z = x + bias,  cdf: of the standard normal distribution (erf, not the tanh approximation)

    Args:
        x: [B, ..., C], a projection without its bias; float32, bfloat16 or float16 (on CPU also float64), CPU or CUDA.
        bias: [C], of x's dtype; under autocast both are brought to autocast's dtype.
    Returns:
        Like x. Computed in float32 (float64 for float64), rounded once; bfloat16 on a CPU is within one step of the
        exact value up to |z| = 6. Backward gives dx and dbias in one pass, dbias summed before dx is rounded; two runs
        agree bit for bit. The kernels take C that are multiples of 8; other inputs (`bias_gelu_unsupported_reason`),
        and torch.func.grad and forward mode, run the composition in PyTorch.
    Raises:
        ValueError: shapes, dtypes or devices do not match, or a dtype is none of the above.
        RuntimeError: backward through the kernels with create_graph=True; they have no second derivative.
    Source: Hendrycks and Gimpel, 2016 (arXiv 1606.08415).

    >>> bias_gelu(torch.zeros(2, 10, 64), torch.ones(64)).mean().item()  # gelu(1)
    0.841...
    """
    check_floating("bias_gelu", x=x, bias=bias)
    if is_autocast(x):  # as the projection that would have added the bias
        dtype = torch.get_autocast_dtype(x.device.type)
        x, bias = (tensor if tensor.dtype == torch.float64 else tensor.to(dtype) for tensor in (x, bias))
    _check(x, bias)
    if bias_gelu_unsupported_reason(x) is not None or needs_composition():
        return reference.bias_gelu(x, bias)
    return _bias_gelu_fwd(x, bias)


def bias_gelu_unsupported_reason(x: Tensor) -> str | None:
    """Why the kernels of `bias_gelu` do not take x [B, ..., C], or None where they do.

    >>> bias_gelu_unsupported_reason(torch.randn(2, 10, 36)) is None
    False
    """
    if x.dtype == torch.float64 and x.device.type == "cuda":
        return "dtype must be float32, bfloat16 or float16 on CUDA, got torch.float64"
    return bias_gelu_channels_reason(x.shape[-1])


def bias_gelu_channels_reason(channels: int) -> str | None:
    """Why the kernels of `bias_gelu` do not take this number of channels, or None where they do."""
    return f"channels must be a multiple of 8, got {channels}" if channels % 8 or channels == 0 else None


def _check(x: Tensor, bias: Tensor) -> None:
    if x.dim() < 2 or bias.shape != x.shape[-1:]:
        raise ValueError(f"bias_gelu: x must be [B, ..., C] and bias [C], got {list(x.shape)} and {list(bias.shape)}")
    if bias.dtype != x.dtype or bias.device != x.device:
        raise ValueError(
            f"bias_gelu: bias must be {x.dtype} on {x.device} like x, got {bias.dtype} on {bias.device}; "
            "cast or move one of them"
        )


@torch.library.register_fake("lgfast::bias_gelu_fwd")
def _(x, bias):
    return x.new_empty(x.shape)


@torch.library.register_fake("lgfast::bias_gelu_bwd")
def _(dout, x, bias):
    return x.new_empty(x.shape), x.new_empty(x.shape[-1:])


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, dout):
    if torch.is_grad_enabled():
        raise RuntimeError("bias_gelu has no second derivative; call backward without create_graph=True")
    return torch.ops.lgfast.bias_gelu_bwd(dout, *ctx.saved_tensors)


_bias_gelu_fwd = register_gradient("bias_gelu_fwd", _backward, _setup_context)
register_vmap_loop("bias_gelu_fwd")
register_vmap_loop("bias_gelu_bwd")
_extension.register_reference("bias_gelu_fwd", bias_gelu_fwd)
_extension.register_reference("bias_gelu_bwd", bias_gelu_bwd)
