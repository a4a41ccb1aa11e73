"""flat_adamw in plain PyTorch."""

import torch
from torch import Tensor


def flat_adamw(
    params: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    low: Tensor | None,
    steps: Tensor,
    num_skipped: Tensor,
    grads: list[Tensor | None],
    offsets: list[int],
    groups: list[int],
    hyperparameters: Tensor,
    loss_scale: Tensor | None,
    found_inf: Tensor | None,
    max_norm: float,
    skip_nonfinite: bool,
) -> None:
    """One AdamW step in place, in float32; arguments as `lgfast.ops.flat_adamw`. Nothing is read back."""
    grads = [None if grad is None else grad.flatten().float() for grad in grads]
    factor = torch.ones((), dtype=torch.float64, device=params.device)
    if loss_scale is not None:
        factor = factor / loss_scale.reshape(()).double()
    is_taken = torch.ones((), dtype=torch.bool, device=params.device)
    if found_inf is not None:
        is_taken = found_inf.reshape(()) == 0
    if max_norm > 0 or skip_nonfinite:
        total = sum((grad.double().square().sum() for grad in grads if grad is not None), torch.zeros_like(factor))
        if skip_nonfinite:
            is_taken = is_taken & total.isfinite()
        if max_norm > 0:
            factor = factor * (max_norm / (total.sqrt() * factor + 1e-6)).clamp(max=1.0)
    num_skipped += (~is_taken).view_as(num_skipped)
    for grad, offset, group, step in zip(grads, offsets, groups, steps, strict=True):
        if grad is None:
            continue
        step += is_taken
        lr, weight_decay, beta1, beta2, eps, sign = hyperparameters[group]
        step_size = lr / (1 - beta1 ** step.double())
        span = slice(offset, offset + grad.numel())
        grad = grad * (factor * sign).float()
        m = exp_avg[span] + (grad - exp_avg[span]) * (1 - beta1).float()
        v = exp_avg_sq[span] * beta2.float() + grad.square() * (1 - beta2).float()
        denominator = v.sqrt() / (1 - beta2 ** step.double()).sqrt().float() + eps.float()
        p = params[span] * (1 - lr * weight_decay).float() - step_size.float() * m / denominator
        for buffer, value in ((params, p), (exp_avg, m), (exp_avg_sq, v)):
            buffer[span] = torch.where(is_taken, value, buffer[span])
        if low is not None:
            low[span] = torch.where(is_taken, params[span].to(low.dtype), low[span])
