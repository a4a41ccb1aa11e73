"""Small pieces the student families share."""

from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn


def init_linear(module: nn.Module) -> None:
    """Linear layers: weight from N(0, 0.02), bias 0; everything else keeps PyTorch's default."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def set_layer_norm_eps(model: nn.Module, eps: float) -> None:
    """Give every LayerNorm of the model the same epsilon."""
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = eps


def device_and_dtype(module: nn.Module) -> dict[str, Any]:
    """Device and dtype of the module's parameters, as arguments for a layer that joins it."""
    parameter = next(module.parameters())
    return {"device": parameter.device, "dtype": parameter.dtype}


def tokens_to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """[B, h*w, C] to [B, C, h, w], a view in channels-last memory."""
    return tokens.transpose(1, 2).unflatten(2, grid)


def map_to_tokens(x: Tensor) -> Tensor:
    """[B, C, h, w] to [B, h*w, C], row-major."""
    return x.flatten(2).transpose(1, 2)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """[B, N, H*D] to [B, H, N, D]."""
    return x.unflatten(2, (num_heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[B, H, N, D] to [B, N, H*D]."""
    return x.transpose(1, 2).flatten(2)


def prepend(token: Tensor | None, x: Tensor) -> Tensor:
    """Put a token [1, 1, C] in front of every sequence of x [B, N, C]."""
    return x if token is None else torch.cat((token.expand(x.shape[0], -1, -1), x), dim=1)


def model_cfg(**changes) -> dict:
    """timm's description of a model trained from scratch at 224, with ImageNet's statistics."""
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": None,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "classifier": "head",
        **changes,
    }
