"""vit_block in plain PyTorch."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def vit_block(x: Tensor, parameters: Sequence[Tensor], num_heads: int, eps1: float, eps2: float) -> Tensor:
    """The block of timm's VisionTransformer, without dropout, stochastic depth and layer scale."""
    norm1_weight, norm1_bias, qkv_weight, qkv_bias, proj_weight, proj_bias, *mlp_half = parameters
    norm2_weight, norm2_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias = mlp_half
    width = x.shape[-1:]
    qkv = F.linear(F.layer_norm(x, width, norm1_weight, norm1_bias, eps1), qkv_weight, qkv_bias)
    q, k, v = qkv.unflatten(2, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    x = x + F.linear(mixed, proj_weight, proj_bias)
    hidden = F.linear(F.layer_norm(x, width, norm2_weight, norm2_bias, eps2), fc1_weight, fc1_bias)
    return x + F.linear(F.gelu(hidden), fc2_weight, fc2_bias)
