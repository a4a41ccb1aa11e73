"""The guidance loss: project the student's tokens to the teacher's width, compare at the larger grid."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from lgfast.guidance.learned_taps import LearnedTaps
from lgfast.guidance.transforms import TRANSFORMS, transformed_mse
from lgfast.ops import feature_mse, weighted_feature_mse
from lgfast.ops.feature_mse import WeightedLoss


class Guidance(nn.Module):
    """Sum over guided pairs of MSE(resize(P(student)), resize(teacher)).

    P is a learned 1x1 convolution with bias. On token-major maps it is a linear layer, with the same default
    initialisation. It is applied before the resize: a 1x1 convolution commutes with bilinear interpolation, whose
    weights sum to one, and the student's grid is the smaller one.

    Args:
        student_channels: width of each tapped student map.
        teacher_channels: width of each teacher stage, same length.
        transform: "linear" as above; "attention" or "similarity" compare what `transforms` makes of the maps instead,
            without projections.
        taps: mixes the tapped maps into one a teacher stage; None: they are paired one to one.
    """

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        transform: str = "linear",
        taps: LearnedTaps | None = None,
    ) -> None:
        super().__init__()
        if transform not in ("linear", *TRANSFORMS):
            raise ValueError(f"guidance.transform: expected linear, attention or similarity, got {transform!r}")
        if len(student_channels) != len(teacher_channels):
            raise ValueError(
                f"guidance pairs layers with stages one to one, got {len(student_channels)} student layers and "
                f"{len(teacher_channels)} teacher stages; set guidance.student_layers or teacher.stages"
            )
        self.transform, self.taps = transform, taps
        pairs = zip(student_channels, teacher_channels, strict=True) if transform == "linear" else ()
        self.projections = nn.ModuleList([nn.Linear(source, target) for source, target in pairs])

    def forward(
        self,
        student_maps: Sequence[tuple[Tensor, tuple[int, int]]],
        teacher_maps: Sequence[Tensor],
        weight: Tensor | None = None,
    ) -> WeightedLoss:
        """
        Args:
            student_maps: per pair the tokens [B, h*w, C] and their grid (h, w); with `taps`, of every tapped block.
            teacher_maps: per pair [B, C', h', w'], treated as constant.
            weight: scalar on the device, a constant; None: both results are the loss, with gradients.
        Returns:
            Scalars, accumulated in float32 (float64 for float64 input).
        """
        if self.taps is not None:
            student_maps = self.taps(student_maps)
        if self.transform != "linear":
            pairs = zip(student_maps, teacher_maps, strict=True)
            loss = reduce(torch.add, (transformed_mse(*student, teacher, self.transform) for student, teacher in pairs))
            return WeightedLoss(loss, loss) if weight is None else WeightedLoss(weight * loss, loss.detach())
        projected = [project(tokens) for project, (tokens, _) in zip(self.projections, student_maps, strict=True)]
        teacher_maps = [teacher.to(tokens.dtype) for teacher, tokens in zip(teacher_maps, projected, strict=True)]
        grids = [grid for _, grid in student_maps]
        if weight is not None:
            return weighted_feature_mse(projected, teacher_maps, grids, weight=weight)
        loss = feature_mse(projected, teacher_maps, grids)
        return WeightedLoss(loss, loss)
