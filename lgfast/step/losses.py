"""The loss that a step minimises, and the parts that it reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lgfast.config import DistillConfig
from lgfast.guidance.distillation import distillation_loss
from lgfast.guidance.teacher import TeacherTargets
from lgfast.ops.feature_mse import WeightedLoss


class Losses(NamedTuple):
    """The losses of a batch: scalars on the device, None where there is no such loss."""

    total: Tensor  # what is minimised
    cls: Tensor  # cross entropy
    guidance: Tensor | None = None  # not weighted
    distill: Tensor | None = None  # not weighted

    def detach(self) -> Losses:
        return Losses._make(None if loss is None else loss.detach() for loss in self)


def mean_losses(parts: Sequence[Losses]) -> Losses:
    """Average the losses of a batch's equal parts."""
    if len(parts) == 1:
        return parts[0]
    return Losses._make(
        None if losses[0] is None else torch.stack(losses).mean() for losses in zip(*parts, strict=True)
    )


class Objective:
    """total = a cross entropy + w distillation + beta guidance; a = 1 and w = 0 where nothing is distilled.

    Args:
        guidance_weight: beta, factor of the guidance loss (2.5 in the paper).
        label_smoothing: for the cross entropy.
        distill: whether and how the teacher's logits are targets too; its `weight` is w, its `cross_entropy_weight` a.
        device: the student's.
        class_weights: [K] factors of the cross entropy by class; None: all 1.
        log_priors: [K] added to the logits for the cross entropy; None: nothing.
        multi_label: images may have several classes; the cross entropy is then the binary one, its mean over classes.
    """

    def __init__(
        self,
        guidance_weight: float = 0.0,
        *,
        label_smoothing: float = 0.0,
        distill: DistillConfig | None = None,
        device: torch.device | str = "cpu",
        class_weights: Tensor | None = None,
        log_priors: Tensor | None = None,
        multi_label: bool = False,
    ) -> None:
        self.class_weights, self.log_priors, self.multi_label = class_weights, log_priors, multi_label
        self.guidance_weight = torch.tensor(guidance_weight, device=device)  # a captured step reads it anew
        self.label_smoothing, self.distill = label_smoothing, distill or DistillConfig()

    def __call__(
        self,
        outputs: Tensor | tuple[Tensor, Tensor],
        guidance: WeightedLoss | None,
        labels: Tensor,
        targets: TeacherTargets | None,
    ) -> tuple[Losses, Tensor]:
        """
        Args:
            outputs: the student's logits [B, K]; of both heads where a distillation token is trained.
            guidance: its guidance loss, weighted by `guidance_weight`; None where there is none.
            labels: [B] class indices, or [B, K] probabilities; of `multi_label` [B, K] shares, 0 to 1 each.
            targets: the teacher's, which are read where its logits are distilled.
        Returns:
            The losses, and the logits of the classifier in float32 at least.
        """
        logits, distilled = (widen(x) for x in (outputs if isinstance(outputs, tuple) else (outputs, outputs)))
        total = cls = self.cross_entropy(logits, labels)
        distill = None
        if self.distill.mode != "none":
            how = self.distill
            distill = distillation_loss(
                distilled, teacher_logits(targets), how.mode, how.temperature, standardise=how.standardise
            )
            total = how.cross_entropy_weight * cls + how.weight * distill
        if guidance is not None:
            total = total + guidance.weighted
        return Losses(total, cls, None if guidance is None else guidance.loss, distill), logits

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Average the cross entropy over the batch; class weights do not renormalise it."""
        if self.multi_label:
            return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        if self.log_priors is not None:
            logits = logits + self.log_priors
        if self.class_weights is None:
            return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        weight, smoothing = self.class_weights.to(logits.dtype), self.label_smoothing
        return F.cross_entropy(logits, labels, weight, label_smoothing=smoothing, reduction="none").mean()


def teacher_logits(targets: TeacherTargets | None) -> Tensor:
    """Return the logits of a teacher's outputs; raise where it gives none."""
    logits = None if targets is None else targets.wait().logits
    if logits is None:
        raise ValueError("distill.mode: expected a teacher that gives logits (gives_logits=True), got none")
    return logits


def widen(logits: Tensor) -> Tensor:
    """Convert the tensor to float32, or keep its own type where that is wider."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
