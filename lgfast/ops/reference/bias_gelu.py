"""bias_gelu in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """gelu(x + bias), exact."""
    return F.gelu(x + bias)


def bias_gelu_fwd(x: Tensor, bias: Tensor) -> Tensor:
    """The operation: in float32, rounded once."""
    return F.gelu(_wide(x) + _wide(bias)).to(x.dtype).contiguous()


def bias_gelu_bwd(dout: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """dx and dbias; dbias sums dx before its rounding."""
    d = torch.ops.aten.gelu_backward(_wide(dout), _wide(x) + _wide(bias))
    return d.to(x.dtype).contiguous(), d.flatten(0, -2).sum(0).to(x.dtype)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
