"""vit_block: a whole pre-norm block of a Vision Transformer in one call each way, on a CPU."""

from typing import NamedTuple

import torch
from torch import Tensor

from lgfast import _extension
from lgfast.ops import reference
from lgfast.ops.gradient import register_gradient
from lgfast.ops.inputs import check_floating, is_autocast
from lgfast.ops.transforms import needs_composition, register_vmap_loop


class BlockParameters(NamedTuple):
    """The parameters of `vit_block` for C channels and M in the MLP; those of projections as nn.Linear keeps them."""

    norm1_weight: Tensor  # [C]
    norm1_bias: Tensor  # [C]
    qkv_weight: Tensor  # [3C, C]
    qkv_bias: Tensor  # [3C]
    proj_weight: Tensor  # [C, C]
    proj_bias: Tensor  # [C]
    norm2_weight: Tensor  # [C]
    norm2_bias: Tensor  # [C]
    fc1_weight: Tensor  # [M, C]
    fc1_bias: Tensor  # [M]
    fc2_weight: Tensor  # [C, M]
    fc2_bias: Tensor  # [C]


def vit_block(
    x: Tensor, parameters: BlockParameters, num_heads: int, *, eps1: float = 1e-6, eps2: float = 1e-6
) -> Tensor:
    """A pre-norm block: x + attention(norm1(x)), then the same with norm2 and an MLP with exact GELU.

    Args:
        x: [B, N, C]; float32 or float64.
        parameters: of x's dtype and device.
        num_heads: H; each head has C / H channels.
        eps1, eps2: of the two norms.
    Returns:
        Like x. The kernel takes a few images at a time through the whole block, so that what it computes stays in a
        core's cache, and writes only what backward reads. Backward gives the gradients of x and of all parameters; two
        runs agree bit for bit, with any number of threads. Other inputs (`vit_block_unsupported_reason`), autocast,
        torch.func.grad and forward mode run the composition in PyTorch.
    Raises:
        ValueError: shapes, dtypes or devices do not match.
        RuntimeError: backward through the kernel with create_graph=True; it has no second derivative.
    Source: Dosovitskiy et al., 2021 (arXiv 2010.11929), as in timm's VisionTransformer.

    >>> shapes = [[32], [32], [96, 32], [96], [32, 32], [32], [32], [32], [64, 32], [64], [32, 64], [32]]
    >>> vit_block(torch.ones(2, 5, 32), BlockParameters(*map(torch.zeros, shapes)), num_heads=1).mean().item()
    1.0
    """
    parameters = BlockParameters(*parameters)
    _check(x, parameters, num_heads)
    reason = vit_block_unsupported_reason(x, num_heads, parameters.fc1_bias.shape[0])
    if reason is not None or is_autocast(x) or needs_composition():
        return reference.vit_block(x, parameters, num_heads, eps1, eps2)
    return _vit_block_fwd(x, *parameters, num_heads, eps1, eps2)[0]


def vit_block_unsupported_reason(x: Tensor, num_heads: int, hidden: int) -> str | None:
    """Why the kernel of `vit_block` does not take x [B, N, C] with an MLP of `hidden` channels, or None where it does.

    >>> vit_block_unsupported_reason(torch.randn(2, 10, 36), 3, 64) is None
    False
    """
    if x.device.type != "cpu":
        return f"its kernel runs on a CPU, got a tensor on {x.device.type}"
    if x.dtype not in (torch.float32, torch.float64):
        return f"dtype must be float32 or float64, got {x.dtype}"
    if not _extension.has_native():
        return "lgfast was built without its CPU kernels"
    return vit_block_channels_reason(x.shape[-1], num_heads, hidden)


def vit_block_channels_reason(width: int, num_heads: int, hidden: int) -> str | None:
    """Why the kernel of `vit_block` does not take these numbers of channels, or None where it does."""
    if width % (8 * num_heads) or width == 0:
        return f"each head must have a multiple of 8 channels, got {num_heads} heads of {width} channels"
    if hidden % 8 or hidden == 0:
        return f"the MLP's channels must be a multiple of 8, got {hidden}"
    return None


def _check(x: Tensor, parameters: BlockParameters, num_heads: int) -> None:
    check_floating("vit_block", x=x, **parameters._asdict())
    if x.dim() != 3 or x.shape[1] == 0:
        raise ValueError(f"vit_block: x must be [B, N, C] with tokens, got {list(x.shape)}")
    width, hidden = x.shape[2], parameters.fc1_bias.shape[0]
    if num_heads < 1 or width % num_heads:
        raise ValueError(f"vit_block: num_heads must divide the {width} channels of x, got {num_heads}")
    sizes = [[width], [width], [3 * width, width], [3 * width], [width, width], [width]]
    sizes += [[width], [width], [hidden, width], [hidden], [width, hidden], [width]]
    for (name, tensor), size in zip(parameters._asdict().items(), sizes, strict=True):
        if list(tensor.shape) != size:
            raise ValueError(f"vit_block: {name} must be {size} for x {list(x.shape)}, got {list(tensor.shape)}")
        if tensor.device != x.device or (tensor.dtype != x.dtype and not is_autocast(x)):
            raise ValueError(
                f"vit_block: {name} must be {x.dtype} on {x.device} like x, got {tensor.dtype} on {tensor.device}; "
                "cast or move one of them"
            )


@torch.library.register_fake("lgfast::vit_block_fwd")
def _(x, *arguments):
    parameters, num_heads = BlockParameters(*arguments[:12]), arguments[12]
    batch, tokens, width = x.shape
    hidden = parameters.fc1_bias.shape[0]
    qkv, mixed, middle, inner = (x.new_empty((batch, tokens, size)) for size in (3 * width, width, width, hidden))
    lse = x.new_empty((batch, num_heads, tokens), dtype=torch.float32)
    return x.new_empty(x.shape), qkv, lse, mixed, middle, inner


@torch.library.register_fake("lgfast::vit_block_bwd")
def _(dout, x, qkv, lse, mixed, middle, hidden, *arguments):
    return x.new_empty(x.shape), x.new_empty(sum(parameter.numel() for parameter in arguments[:12]))


def _setup_context(ctx, inputs, output):
    x, *parameters = inputs[:13]
    ctx.save_for_backward(x, *output[1:], *parameters)
    ctx.numbers = inputs[13:]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx, dout, *_):
    if torch.is_grad_enabled():
        raise RuntimeError("vit_block has no second derivative; call backward without create_graph=True")
    if dout is None:
        return (None,) * 16
    parameters = ctx.saved_tensors[6:]
    dx, dparams = torch.ops.lgfast.vit_block_bwd(dout, *ctx.saved_tensors, *ctx.numbers)
    parts = dparams.split([parameter.numel() for parameter in parameters])
    grads = (part.view(parameter.shape) for part, parameter in zip(parts, parameters, strict=True))
    return dx, *grads, None, None, None


_vit_block_fwd = register_gradient("vit_block_fwd", _backward, _setup_context)
register_vmap_loop("vit_block_fwd")
register_vmap_loop("vit_block_bwd")
