"""Structured initialisation: every head begins as a convolution with one impulse. Costs nothing per step."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lgfast.models.mimetic import VALUE_PROJECTION, factors, linear_layers, query_key_value

OFFSETS = ((0, 0), (-1, 0), (0, 1), (0, -1), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1))  # (down, right), head by head
IMPULSE, NOISE, NOISE_STD = 1000.0, 3.0, 0.6  # a neighbour's score, and the others': NOISE times truncated noise
QUERY_KEY_NORM = 7.0  # Frobenius norm of W_Q and of W_K of a head
POSITION_SCALE = 18.0  # of learned position embeddings, which then outweigh the patches in the first scores


class Grid(NamedTuple):
    """Position embeddings of the patches, [h * w, d] by rows, and their shape."""

    positions: Tensor
    shape: tuple[int, int]


@torch.no_grad()
def init_impulse(model: nn.Module) -> None:
    """Initialise attention of a vision transformer in place, so that each head looks at one neighbour of each patch.

    For a head with tokens x [N, d] as rows, P their position embeddings after a layer norm, and H [N, N] the matrix
    that moves a patch's neighbour, at the head's offset, onto it:

        P W_Q W_K^T P^T  ~  1000 H + 3 Z,   Z of truncated normal noise where H is 0

    as closely as the rank of a head allows, with W_Q and W_K of norm 7. Heads take the nine offsets of a 3 x 3 filter
    in turn. Values and projection are those of `init_mimetic`, biases become 0, learned positions are multiplied by 18.
    The noise comes from torch's global generator.

    Args:
        model: with `pos_embed` [1, prefix + h * w, d] of a square grid, and blocks of that width whose attention holds
            `proj` and q, k and v.
    Raises:
        ValueError: the model has no such positions or attention.
    Source: Zheng et al., "Structured Initialization for Vision Transformers", NeurIPS 2025 (arXiv 2505.19985); what the
        paper leaves open is as in its authors' code.
    """
    grid = _scaled_grid(model)
    layers = [parts for module in model.modules() if (parts := query_key_value(module)) is not None]
    if not layers or any(query.shape[1] != grid.positions.shape[1] for _, (query, _, _) in layers):
        raise ValueError(
            f"model.init=impulse: expected attention with q, k, v and proj as wide as pos_embed "
            f"({grid.positions.shape[1]}) in every block, which {type(model).__name__} has not; use model.init=mimetic"
        )
    for module, (query, key, value) in layers:
        for rows, offset in _heads(query.shape[0], module.num_heads):
            scores = target(grid.shape, offset)
            query[rows], key[rows] = _query_key(grid.positions, scores, rows.stop - rows.start)
        left, right = factors(len(value), 1 / math.sqrt(len(value)), *VALUE_PROJECTION)
        value.copy_(left.T)
        module.proj.weight.copy_(right)
        for layer in linear_layers(module, "qkv", "q", "k", "v", "kv", "qk", "proj").values():
            if layer.bias is not None:
                layer.bias.zero_()


def target(shape: tuple[int, int], offset: tuple[int, int]) -> Tensor:
    """Return scores [h * w, h * w]: 1000 where a patch meets its neighbour at the offset (down, right), else noise.

    A patch at the edge whose neighbour would be outside has noise only.
    """
    rows, columns = (torch.diag(torch.ones(size - abs(by)), by) for size, by in zip(shape, offset, strict=True))
    impulse = torch.kron(rows, columns)
    noise = nn.init.trunc_normal_(torch.empty_like(impulse), std=NOISE_STD)
    return torch.where(impulse == 1, IMPULSE, NOISE * noise)


def _scaled_grid(model: nn.Module) -> Grid:
    """Scale learned positions of a model and return those of its patches, one layer norm later."""
    positions = getattr(model, "pos_embed", None)
    if not isinstance(positions, Tensor) or positions.ndim != 3:
        raise ValueError(
            f"model.init=impulse: {type(model).__name__} has no pos_embed [1, tokens, width] for all its blocks; "
            "use model.init=mimetic"
        )
    if positions.requires_grad:
        positions.mul_(POSITION_SCALE)
    side = math.isqrt(positions.shape[1])
    patches = positions[0, positions.shape[1] - side * side :]
    return Grid(F.layer_norm(patches, patches.shape[1:]), (side, side))


def _heads(dim: int, num_heads: int) -> list[tuple[slice, tuple[int, int]]]:
    """Return each head's rows of a weight, and its offset."""
    size = dim // num_heads
    return [(slice(head * size, (head + 1) * size), OFFSETS[head % len(OFFSETS)]) for head in range(num_heads)]


def _query_key(positions: Tensor, scores: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Return weights [head_dim, d] of queries and keys whose products come closest to the scores of the positions."""
    left, values, right = torch.linalg.svd(positions.T @ positions)
    kept = values[:head_dim].reciprocal()
    inverse = right[:head_dim].T * kept @ (left[:, :head_dim].T @ positions.T)  # [d, h * w]
    left, values, right = torch.linalg.svd(inverse @ scores @ inverse.T)
    root = values[:head_dim, None].sqrt()
    query, key = left[:, :head_dim].T * root, right[:head_dim] * root
    return QUERY_KEY_NORM * query / query.norm(), QUERY_KEY_NORM * key / key.norm()
