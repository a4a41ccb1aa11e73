"""add_layer_norm in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, drop_scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """y = residual + drop_scale x, and LayerNorm(y); arguments as `lgfast.ops.add_layer_norm`."""
    if drop_scale is not None:
        x = x * _per_sample(drop_scale, x)
    y = residual + x
    return y, F.layer_norm(y, weight.shape, weight, bias, eps)


def add_layer_norm_fwd(x, residual, weight, bias, drop_scale, eps) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operation: y, out, and the mean and 1 / deviation of y's rows."""
    scale = 1.0 if drop_scale is None else _wide(_per_sample(drop_scale, x))
    y = (_wide(residual) + scale * _wide(x)).to(x.dtype)
    mean = _wide(y).mean(-1, keepdim=True)
    centred = _wide(y) - mean
    rstd = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    out = centred * rstd * _wide(weight) + _wide(bias)
    return y.contiguous(), out.to(x.dtype).contiguous(), mean.squeeze(-1), rstd.squeeze(-1)


def add_layer_norm_bwd(dout, dy, y, weight, drop_scale, mean, rstd) -> tuple[Tensor, Tensor, Tensor]:
    """The operation's gradients: dx (empty without drop_scale), dresidual, and dweight and dbias as [2, C]."""
    dout, rstd = _wide(dout), rstd.unsqueeze(-1)
    xhat = (_wide(y) - mean.unsqueeze(-1)) * rstd
    d = dout * _wide(weight)
    d = rstd * (d - d.mean(-1, keepdim=True) - xhat * (d * xhat).mean(-1, keepdim=True))
    d = d if dy is None else d + _wide(dy)
    dx = y.new_empty(0) if drop_scale is None else (d * _wide(_per_sample(drop_scale, y))).to(y.dtype).contiguous()
    dparams = torch.stack([(dout * xhat).flatten(0, -2).sum(0), dout.flatten(0, -2).sum(0)])
    return dx, d.to(y.dtype).contiguous(), dparams.to(y.dtype)


def _per_sample(drop_scale: Tensor, x: Tensor) -> Tensor:
    return drop_scale.view(-1, *(1,) * (x.dim() - 1))


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
