"""flat_adamw in plain PyTorch."""

import torch
from torch import Tensor


def flat_adamw(
    params: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    low: Tensor | None,
    grads: list[Tensor],
    offsets: list[int],
    groups: list[int],
    lr: Tensor,
    weight_decay: list[float],
    step: Tensor,
    num_skipped: Tensor,
    loss_scale: Tensor | None,
    beta1: float,
    beta2: float,
    eps: float,
    max_norm: float,
    skip_nonfinite: bool,
) -> None:
    """One AdamW step in place, in float32; arguments as `lgfast.ops.flat_adamw`. Nothing is read back."""
    grads = [grad.flatten().float() for grad in grads]
    factor = torch.ones((), dtype=torch.float64, device=params.device)
    if loss_scale is not None:
        factor = factor / loss_scale.reshape(()).double()
    is_taken = torch.ones((), dtype=torch.bool, device=params.device)
    if max_norm > 0 or skip_nonfinite:
        total = sum((grad.double().square().sum() for grad in grads), torch.zeros_like(factor))
        if skip_nonfinite:
            is_taken = total.isfinite()
        if max_norm > 0:
            factor = factor * (max_norm / (total.sqrt() * factor + 1e-6)).clamp(max=1.0)
    step += is_taken.view_as(step)
    num_skipped += (~is_taken).view_as(num_skipped)
    count = step.reshape(()).double()
    correction1, correction2 = 1 - beta1**count, 1 - beta2**count
    for grad, offset, group in zip(grads, offsets, groups, strict=True):
        place = slice(offset, offset + grad.numel())
        rate = lr[group]
        grad = grad * factor.float()
        m = exp_avg[place] + (grad - exp_avg[place]) * (1 - beta1)
        v = exp_avg_sq[place] * beta2 + grad.square() * (1 - beta2)
        denominator = v.sqrt() / correction2.sqrt().float() + eps
        p = params[place] * (1 - rate * weight_decay[group]) - rate / correction1.float() * m / denominator
        for buffer, value in ((params, p), (exp_avg, m), (exp_avg_sq, v)):
            buffer[place] = torch.where(is_taken, value, buffer[place])
        if low is not None:
            low[place] = torch.where(is_taken, params[place].to(low.dtype), low[place])
