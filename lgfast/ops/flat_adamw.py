"""flat_adamw: one AdamW step of every parameter, in one pass over flat buffers."""

import torch
from torch import Tensor

from lgfast import _extension
from lgfast.ops import reference

ALIGN = 8  # offsets into the flat buffers are multiples of it


def flat_adamw(
    params: Tensor,
    grads: list[Tensor | None],
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    offsets: list[int],
    groups: list[int],
    hyperparameters: Tensor,
    steps: Tensor,
    num_skipped: Tensor,
    *,
    low: Tensor | None = None,
    loss_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    max_norm: float = 0.0,
    skip_nonfinite: bool = False,
) -> None:
    """Update flat parameters and moments in place; nothing is read back to the host.

        m += (1 - b1) (g - m);  v = b2 v + (1 - b2) g^2
        p = p (1 - lr wd) - lr / (1 - b1^t) m / (sqrt(v / (1 - b2^t)) + eps)

    Gradients are read where they are, so they need neither a flat buffer nor zeroing (let autograd make new ones).

    Args:
        params, exp_avg, exp_avg_sq: [total] float32, CPU or CUDA, each (as `low`) on a 16-byte boundary. Elements that
            no gradient covers stay as they are.
        grads: one for each of K parameters, of one dtype, float32, bfloat16 or float16; None leaves the parameter, its
            moments and its step count as they are.
        offsets: K indices into `params`, multiples of 8; parameter k covers offsets[k] up to offsets[k] + numel,
            rounded up to a multiple of 8 (the rest is padding, and must be 0).
        groups: K rows of `hyperparameters`.
        hyperparameters: [G, 6] float64, on the device; a row is a group's `hyperparameter_row`.
        steps: [K] float32, t before this step; counted up here for parameters with a gradient.
        num_skipped: one int64, counted up when a step is skipped.
        low: [total] bfloat16 or float16, receives the rounded parameters.
        loss_scale: one float32 that the gradients still carry as a factor.
        found_inf: one float32; other than 0, the step is skipped: nothing but `num_skipped` changes.
        max_norm: clips the global norm of the gradients as torch.nn.utils.clip_grad_norm_; 0: no clipping.
        skip_nonfinite: skip a step in which a gradient is NaN or infinite.
    Raises:
        RuntimeError: a shape, dtype or offset does not fit.
    Source: Loshchilov and Hutter, ICLR 2019 (arXiv 1711.05101); equal to torch.optim.AdamW to float32 rounding.

    `lgfast.FlatAdamW` makes the buffers. By hand:

    >>> import torch
    >>> params, exp_avg, exp_avg_sq = torch.ones(8), torch.zeros(8), torch.zeros(8)
    >>> row = hyperparameter_row(lr=0.1, weight_decay=0.0, betas=(0.9, 0.999), eps=1e-8)
    >>> numbers = torch.tensor([row], dtype=torch.float64)
    >>> steps, skipped = torch.zeros(1), torch.zeros((), dtype=torch.int64)
    >>> flat_adamw(params, [torch.ones(8)], exp_avg, exp_avg_sq, [0], [0], numbers, steps, skipped)
    >>> round(params[0].item(), 4)
    0.9
    """
    torch.ops.lgfast.flat_adamw(
        params, exp_avg, exp_avg_sq, low, steps, num_skipped, grads, offsets, groups, hyperparameters, loss_scale,
        found_inf, max_norm, skip_nonfinite,
    )  # fmt: skip


def hyperparameter_row(
    lr: float, weight_decay: float, betas: tuple[float, float], eps: float, maximize: bool = False
) -> tuple[float, ...]:
    """A group's row of `hyperparameters`; the last number is the sign of its gradients."""
    return float(lr), float(weight_decay), float(betas[0]), float(betas[1]), float(eps), -1.0 if maximize else 1.0


@torch.library.register_fake("lgfast::flat_adamw")
def _(params, exp_avg, exp_avg_sq, low, steps, num_skipped, grads, *rest):
    return None


_extension.register_reference("flat_adamw", reference.flat_adamw)
