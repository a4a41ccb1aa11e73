"""Distil the teacher's logits (Hinton et al., 2015; DeiT, Touvron et al., 2021; Sun et al., CVPR 2024)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-7  # added to the deviation of logits, as the authors of the standardised form have it


def distillation_loss(
    student: Tensor, teacher: Tensor, mode: str, temperature: float = 1.0, standardise: bool = False
) -> Tensor:
    """Measure how far the student's logits are from the teacher's.

        soft: T^2 / (B K) * sum over images and classes of p (log p - log q),  p = softmax(teacher / T), q likewise
        hard: cross entropy against the teacher's most likely class
        soft, standardised: T^2 / B * the same sum, p = softmax(z(teacher) / T), q likewise,
            z(x) = (x - mean(x)) / (std(x) + 1e-7) of each image's logits

    Args:
        student: logits [B, K]; receives the gradient.
        teacher: logits [B, K], treated as constant; any floating dtype.
        mode: "soft" or "hard".
        temperature: T of the soft loss.
        standardise: give both networks' logits mean 0 and deviation 1 (unbiased) first, so that the student need not
            match the size of the teacher's. The sum is then divided by B alone, as published.
    Returns:
        Scalar in the student's dtype.
    Source: DeiT's DistillationLoss, as the paper's code states it; standardised: Sun et al., "Logit Standardization in
        Knowledge Distillation", CVPR 2024 (arXiv 2403.01427).

    >>> logits = torch.tensor([[2.0, 0.0, -1.0]])
    >>> distillation_loss(logits, logits, "soft", temperature=2.0).item()
    0.0
    """
    teacher = teacher.detach().to(student.dtype)
    if mode == "hard":
        return F.cross_entropy(student, teacher.argmax(1))
    if standardise:
        student, teacher = (standardised(logits) for logits in (student, teacher))
    log_q, log_p = (F.log_softmax(logits / temperature, dim=1) for logits in (student, teacher))
    count = len(student) if standardise else student.numel()
    return F.kl_div(log_q, log_p, reduction="sum", log_target=True) * (temperature**2 / count)


def standardised(logits: Tensor) -> Tensor:
    """Give each row of [B, K] mean 0 and deviation 1."""
    deviation, mean = torch.std_mean(logits, dim=1, keepdim=True)
    return (logits - mean) / (deviation + EPSILON)
