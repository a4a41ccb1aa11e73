"""Mimetic initialisation: attention that begins as it tends to end up after training. Costs nothing per step."""

from __future__ import annotations

import math

import torch
from timm.layers import build_sincos2d_pos_embed
from torch import Tensor, nn

QUERY_KEY = (0.7, 0.7)  # of the noise and of the identity in W_Q W_K^T
INPUTS = ("qkv", "q", "k", "v", "kv", "qk")  # layers of an attention module, named by what they give
VALUE_PROJECTION = (0.4, -0.4)  # likewise in W_V W_proj


@torch.no_grad()
def init_mimetic(model: nn.Module) -> None:
    """Initialise attention and learned position embeddings of a vision transformer in place.

    For each head of width k in a block of width d, with tokens x [N, d] as rows and Z a matrix of normal noise [d, d]:

        W_Q W_K^T  ~  0.7 Z + 0.7 I,   Z of variance 1/k, by the first k singular vectors
        W_V W_proj ~  0.4 Z - 0.4 I,   Z of variance 1/d

    Biases of these layers become 0. Learned position embeddings become two-dimensional sinusoids, 0 for class tokens;
    they are trained on from there. The noise comes from torch's global generator.

    Args:
        model: with attention modules that hold `proj` and q, k and v as `qkv`, as `q` and `kv`, as `qk` and `v`, or
            apart.
    Raises:
        ValueError: the model has no such attention.
    Source: Trockman & Kolter, "Mimetic Initialization of Self-Attention Layers", ICML 2023 (arXiv 2305.09828).
    """
    layers = [parts for module in model.modules() if (parts := query_key_value(module)) is not None]
    if not layers:
        raise ValueError(f"model.init=mimetic: {type(model).__name__} has no attention with q, k, v and proj")
    for module, (query, key, value) in layers:
        init_attention(query, key, value, module.proj.weight, module.num_heads)
        for layer in linear_layers(module, *INPUTS, "proj").values():
            if layer.bias is not None:
                layer.bias.zero_()
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] == "pos_embed" and parameter.requires_grad:
            init_positions(parameter)


def linear_layers(module: nn.Module, *names: str) -> dict[str, nn.Linear]:
    """The linear layers among a module's named children."""
    return {name: layer for name in names if isinstance(layer := getattr(module, name, None), nn.Linear)}


def query_key_value(module: nn.Module) -> tuple[nn.Module, tuple[Tensor, Tensor, Tensor]] | None:
    """The module with its weights of q, k and v, each [d, d] and a view; None where it is no such attention."""
    layers = linear_layers(module, *INPUTS)
    parts = [part for name, layer in layers.items() for part in zip(name, layer.weight.chunk(len(name)), strict=True)]
    found = dict(parts)
    is_attention = len(parts) == len(found) == 3 and isinstance(getattr(module, "proj", None), nn.Linear)
    if not is_attention or not hasattr(module, "num_heads"):
        return None
    is_square = all(weight.shape == module.proj.weight.shape[::-1] for weight in found.values())
    return (module, (found["q"], found["k"], found["v"])) if is_square else None


def init_attention(query: Tensor, key: Tensor, value: Tensor, projection: Tensor, num_heads: int) -> None:
    """Fill the weights [d, d] of one attention; torch stores a weight as the transpose of the W that x multiplies."""
    dim = query.shape[1]
    head_dim = dim // num_heads
    for head in range(num_heads):
        rows = slice(head * head_dim, (head + 1) * head_dim)
        left, right = factors(dim, 1 / math.sqrt(head_dim), *QUERY_KEY)
        query[rows], key[rows] = left[:, :head_dim].T, right[:, :head_dim].T
    left, right = factors(dim, 1 / math.sqrt(dim), *VALUE_PROJECTION)
    value.copy_(left.T)
    projection.copy_(right)


def factors(dim: int, std: float, noise: float, identity: float) -> tuple[Tensor, Tensor]:
    """A and B [dim, dim] with A B^T = noise * Z + identity * I, columns by falling singular value."""
    matrix = noise * std * torch.randn(dim, dim) + identity * torch.eye(dim)
    left, values, right = torch.linalg.svd(matrix)
    root = values.sqrt()
    return left * root, right.T * root


def init_positions(positions: Tensor) -> None:
    """Fill [1, prefix + h * w, d] or [1, d, h, w] with sinusoids of the grid, which is square where it is flat."""
    if positions.ndim == 4:
        dim, grid = positions.shape[1], positions.shape[2:]
        positions.copy_(build_sincos2d_pos_embed(list(grid), dim).T.reshape(positions.shape))
        return
    num_tokens, dim = positions.shape[1:]
    side = math.isqrt(num_tokens)
    positions.zero_()
    positions[0, num_tokens - side * side :] = build_sincos2d_pos_embed([side, side], dim)
