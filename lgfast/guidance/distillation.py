"""The teacher's logits as targets (Hinton et al., 2015; DeiT, Touvron et al., 2021)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def distillation_loss(student: Tensor, teacher: Tensor, mode: str, temperature: float = 1.0) -> Tensor:
    """How far the student's logits are from the teacher's.

        soft: T^2 / (B K) * sum over images and classes of p (log p - log q),  p = softmax(teacher / T), q likewise
        hard: cross entropy against the teacher's most likely class

    Args:
        student: logits [B, K]; receives the gradient.
        teacher: logits [B, K], treated as constant; any floating dtype.
        mode: "soft" or "hard".
        temperature: T; of the soft loss.
    Returns:
        Scalar in the student's dtype.
    Source: DeiT's DistillationLoss, as the paper's code states it.
    """
    teacher = teacher.detach().to(student.dtype)
    if mode == "hard":
        return F.cross_entropy(student, teacher.argmax(1))
    log_q, log_p = (F.log_softmax(logits / temperature, dim=1) for logits in (student, teacher))
    return F.kl_div(log_q, log_p, reduction="sum", log_target=True) * (temperature**2 / student.numel())
