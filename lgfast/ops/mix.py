"""mixup and cutmix of whole batches: a plan is drawn from (seed, epoch, step), and the batch is mixed where it lies."""

from __future__ import annotations

import torch
from torch import Tensor

from lgfast.ops import random as philox
from lgfast.ops.inputs import check_floating
from lgfast.spec.augment import AugmentSpec

# Columns of a mix plan: weight of an image's own pixels outside the box (inside it is 0), the box, and the weight of
# its own label.
MIX_COLUMNS = ("outside", "top", "left", "height", "width", "label")


def mix_plan(spec: AugmentSpec, counter: Tensor, steps: Tensor) -> Tensor:
    """Draw how batches are mixed: one weight, or one box, for a whole batch.

    The weight follows Beta(alpha, alpha); where both alphas are above 0 a batch takes mixup or cutmix with probability
    one half each. Each row depends on (seed, epoch, step) alone.

    Args:
        spec: image_size, mixup_alpha, cutmix_alpha; at least one alpha is above 0.
        counter: (2,) int64, seed and epoch, on CPU: nothing of a batch is needed, so an epoch is drawn at once.
        steps: (n,) int64, numbers of the batches within the epoch, on CPU.
    Returns:
        (n, 6) float64, columns MIX_COLUMNS, on CPU.
    Source: timm 1.0 (Mixup, mode "batch").

    >>> spec = AugmentSpec(image_size=32, mixup_alpha=0.8)
    >>> plan = mix_plan(spec, counter=torch.tensor([1, 0]), steps=torch.arange(10))  # seed 1, epoch 0, ten batches
    >>> plan.shape
    torch.Size([10, 6])
    """
    switch_bits, weight_bits, *centre_bits = philox.sample_bits(counter, steps, philox.MIX_BLOCK).unbind(-1)
    if spec.mixup_alpha > 0 and spec.cutmix_alpha > 0:
        is_cutmix = philox.uniform(switch_bits) < 0.5
    else:
        is_cutmix = torch.full_like(switch_bits, spec.cutmix_alpha > 0, dtype=torch.bool)
    weight = torch.where(is_cutmix, beta(weight_bits, spec.cutmix_alpha), beta(weight_bits, spec.mixup_alpha))
    size = spec.image_size
    side = (size * torch.sqrt(1 - weight)).long()
    centres = [philox.below(bits, size) for bits in centre_bits]
    top, left = ((centre - side // 2).clamp(min=0) * is_cutmix for centre in centres)
    bottom, right = ((centre + (side + 1) // 2).clamp(max=size) * is_cutmix for centre in centres)
    height, width = bottom - top, right - left
    label = torch.where(is_cutmix, 1 - (height * width).double() / size**2, weight)
    columns = (torch.where(is_cutmix, 1.0, weight), top, left, height, width, label)
    return torch.stack([column.double() for column in columns], dim=1)


def beta(bits: Tensor, alpha: float) -> Tensor:
    """32-bit words to float64 of the distribution Beta(alpha, alpha), through its quantile function; 1 for alpha 0."""
    from scipy.special import betaincinv

    if alpha == 0:
        return torch.ones_like(bits, dtype=torch.float64)
    return torch.from_numpy(betaincinv(alpha, alpha, ((bits.double() + 0.5) * 2.0**-32).numpy()))


def partners(values: Tensor) -> Tensor:
    """The partner of each element of a batch: the one half a batch further on.

    When a batch is dealt out to ranks (rank r gets elements r, r + world, ...) in even shares, partners stay together,
    and are the same ones as without ranks.
    """
    return values.roll(-(len(values) // 2), 0)


def mix_images(images: Tensor, row: Tensor) -> Tensor:
    """Mix each image with its partner.

    Args:
        images: (B, 3, S, S), any device and floating dtype; computed in float32 at least, rounded once.
        row: (6,) float64 of `mix_plan`, on the images' device; never read back, so a CUDA graph can hold the call.
    Returns:
        (B, 3, S, S), the images' dtype.
    Raises:
        ValueError: the images are not of a floating dtype.

    >>> row = mix_plan(AugmentSpec(image_size=32, cutmix_alpha=1.0), torch.tensor([1, 0]), torch.arange(1))[0]
    >>> mix_images(torch.randn(4, 3, 32, 32), row).shape
    torch.Size([4, 3, 32, 32])
    """
    check_floating("mix_images", images=images)
    outside, top, left, height, width, _ = row.unbind()
    pixels = torch.arange(images.shape[-1], device=images.device)
    in_rows = (pixels >= top) & (pixels < top + height)
    in_columns = (pixels >= left) & (pixels < left + width)
    own = torch.where(in_rows[:, None] & in_columns, 0.0, outside)
    dtype = torch.promote_types(images.dtype, torch.float32)
    return (images * own.to(dtype) + partners(images) * (1 - own).to(dtype)).to(images.dtype)


def mix_labels(labels: Tensor, row: Tensor, num_classes: int) -> Tensor:
    """Mix each label with its partner's: (B, K) float32 from classes (B,) int64, or from (B, K) of 0 and 1 where an
    image may have several; `row` as in `mix_images`.

    >>> row = mix_plan(AugmentSpec(image_size=32, mixup_alpha=1.0), torch.tensor([1, 0]), torch.arange(1))[0]
    >>> mix_labels(torch.tensor([0, 2]), row, num_classes=3).sum(1)
    tensor([1., 1.])
    """
    own = row[-1]
    is_there = labels if labels.ndim == 2 else labels[:, None] == torch.arange(num_classes, device=labels.device)
    return (own * is_there.double() + (1 - own) * partners(is_there.double())).float()
