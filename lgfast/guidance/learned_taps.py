"""Learned taps: each teacher stage guides a weighted mean of all blocks, whose weights are trained too."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from lgfast.models.taps import TokenMap


class LearnedTaps(nn.Module):
    """Mixes the maps of all blocks into one map for each teacher stage.

        mixed_k = sum_l softmax(w_k)_l map_l,  w_k = 0 at first: the mean of all blocks

    Args:
        num_pairs: the number of teacher stages.
        num_blocks: the number of maps to mix.
    Source: the feature mixing of arXiv 2608.10723, without the rest of that method.
    """

    def __init__(self, num_pairs: int, num_blocks: int) -> None:
        super().__init__()
        # vectors, so that weight decay leaves them alone
        self.logits = nn.ParameterList([nn.Parameter(torch.zeros(num_blocks)) for _ in range(num_pairs)])

    def forward(self, maps: Sequence[TokenMap]) -> list[TokenMap]:
        """
        Args:
            maps: of every block the tokens [B, h*w, C] and their grid (h, w); all of one shape.
        Returns:
            As many maps as teacher stages, of the same shape.
        """
        stacked = torch.stack([tokens for tokens, _ in maps])
        weights = torch.stack(list(self.logits)).softmax(1, torch.promote_types(stacked.dtype, torch.float32))
        return [(tokens, maps[0][1]) for tokens in torch.tensordot(weights.to(stacked.dtype), stacked, dims=1)]


def check_alike(shapes: Sequence[tuple[int, tuple[int, int]]]) -> None:
    """Raise a ValueError unless all blocks give maps of one shape, which alone can be mixed."""
    for block, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise ValueError(
                f"guidance.taps: learned taps mix maps of one shape, and block {block} gives {describe(shape)} where "
                f"the first gives {describe(shapes[0])}; use guidance.taps=fixed, or guidance.student_layers for the "
                "blocks of one stage"
            )


def describe(shape: tuple[int, tuple[int, int]]) -> str:
    channels, (height, width) = shape
    return f"{channels} channels on {height}x{width}"
