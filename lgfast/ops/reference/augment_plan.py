"""augment_plan in plain PyTorch: the truth for the native kernels.

Every number is a function of (seed, epoch, sample index) alone, in timm's distributions: random resized crop with ten
tries and a centred fallback, flips, random erasing with ten tries, then the policy's operations and colour jitter.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lgfast.ops import random as philox
from lgfast.ops.reference.augment_policies import color_jitter, policy_slots
from lgfast.spec.augment import AugmentSpec

ERASE_AREA = (0.02, 1 / 3)  # of the output, timm's defaults
ERASE_LOG_RATIO = (math.log(0.3), math.log(1 / 0.3))


def augment_plan(spec: AugmentSpec, sizes: Tensor, indices: Tensor, counter: Tensor) -> Tensor:
    """Draw the plan of a batch.

    Args:
        spec: what is drawn.
        sizes: (B, 2) int32, height and width of each source image.
        indices: (B,) int64, the samples' numbers in their data set.
        counter: (2,) int64, seed and epoch.
    Returns:
        (B, P) float64; columns named by `spec.plan_columns`.
    """
    height, width = sizes.to(torch.int64).unbind(-1)
    flip_bits, erase_bits, *shift_bits = philox.sample_bits(counter, indices, philox.FLIP_BLOCK).unbind(-1)
    columns = _crop(spec, height, width, counter, indices)
    columns += [philox.below(bits, 2 * spec.max_shift + 1) - spec.max_shift for bits in shift_bits]
    *noise_key, vertical_bits, _ = philox.sample_bits(counter, indices, philox.NOISE_BLOCK).unbind(-1)
    is_mirrored = philox.uniform(flip_bits) < spec.flip_prob
    columns += [is_mirrored + 2 * (philox.uniform(vertical_bits) < spec.vertical_flip_prob)]
    columns += _erase(spec, philox.uniform(erase_bits), counter, indices)
    columns += noise_key
    columns += policy_slots(spec, counter, indices)
    columns += color_jitter(spec.jitter, counter, indices)
    return torch.stack([column.to(torch.float64) for column in columns], dim=-1)


def eval_plan(spec: AugmentSpec, sizes: Tensor) -> Tensor:
    """The plan that shows each image whole: (B, P) float64 for sizes (B, 2).

    >>> eval_plan(AugmentSpec(rand_augment=""), torch.tensor([[32, 48]]))[0, 2:4]  # the crop: all rows and columns
    tensor([32., 48.], dtype=torch.float64)
    """
    plan = torch.zeros(len(sizes), len(spec.plan_columns), dtype=torch.float64, device=sizes.device)
    plan[:, 2:4] = sizes
    for slot in range(spec.num_slots):
        plan[:, spec.plan_columns.index(f"op_{slot}")] = -1
    return plan


def _tries(counter: Tensor, indices: Tensor, block: int) -> tuple[Tensor, ...]:
    """Random words of all tries of a rejection sampler: four (B, 10) tensors."""
    blocks = torch.arange(block, block + philox.NUM_TRIES, device=indices.device)
    return philox.sample_bits(counter, indices, blocks).unbind(-1)


def _box(area: Tensor, log_ratio: tuple[float, float], bits: Tensor) -> tuple[Tensor, Tensor]:
    """Both sides of a rectangle of the area, rounded, with a log-uniform ratio first / second."""
    ratio = torch.exp(_between(log_ratio, bits))
    return torch.sqrt(area * ratio).round(), torch.sqrt(area / ratio).round()


def _between(bounds: tuple[float, float], bits: Tensor) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * philox.uniform(bits)


def _first(accepted: Tensor, *values: Tensor) -> list[Tensor]:
    """The values (B, 10) of the first accepted try; of try 0 where none is."""
    chosen = accepted.to(torch.uint8).argmax(dim=1, keepdim=True)
    return [value.gather(1, chosen).squeeze(1) for value in values]


def _crop(spec: AugmentSpec, height: Tensor, width: Tensor, counter: Tensor, indices: Tensor) -> list[Tensor]:
    """top, left, height, width of the random resized crop."""
    if spec.weak:
        return [torch.zeros_like(height), torch.zeros_like(width), height, width]
    area_bits, ratio_bits, top_bits, left_bits = _tries(counter, indices, philox.CROP_BLOCK)
    area = _between(spec.crop_scale, area_bits) * (height * width)[:, None]
    log_ratio = (math.log(spec.crop_ratio[0]), math.log(spec.crop_ratio[1]))
    crop_width, crop_height = (side.to(torch.int64).clamp(min=1) for side in _box(area, log_ratio, ratio_bits))
    room_y, room_x = height[:, None] - crop_height, width[:, None] - crop_width
    accepted = (room_y >= 0) & (room_x >= 0)
    top, left = philox.below(top_bits, room_y + 1), philox.below(left_bits, room_x + 1)
    drawn = _first(accepted, top, left, crop_height, crop_width)
    fallback = _centre_crop(spec.crop_ratio, height, width)
    any_accepted = accepted.any(dim=1)
    return [torch.where(any_accepted, a, b) for a, b in zip(drawn, fallback, strict=True)]


def _centre_crop(ratio: tuple[float, float], height: Tensor, width: Tensor) -> list[Tensor]:
    """The largest centred crop whose width / height lies within the bounds."""
    wide, tall = width.to(torch.float64), height.to(torch.float64)
    crop_height = torch.where(wide / tall < ratio[0], (wide / ratio[0]).round().to(torch.int64), height)
    crop_width = torch.where(wide / tall > ratio[1], (tall * ratio[1]).round().to(torch.int64), width)
    return [(height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width]


def _erase(spec: AugmentSpec, chance: Tensor, counter: Tensor, indices: Tensor) -> list[Tensor]:
    """top, left, height, width of the erased rectangle; all 0 where nothing is erased."""
    size = spec.image_size
    area_bits, ratio_bits, top_bits, left_bits = _tries(counter, indices, philox.ERASE_BLOCK)
    area = _between(ERASE_AREA, area_bits) * (size * size)
    height, width = (side.to(torch.int64) for side in _box(area, ERASE_LOG_RATIO, ratio_bits))
    accepted = (height < size) & (width < size)
    top, left = philox.below(top_bits, size - height + 1), philox.below(left_bits, size - width + 1)
    is_erased = (chance < (0.0 if spec.weak else spec.erase_prob)) & accepted.any(dim=1)
    return [value * is_erased for value in _first(accepted, top, left, height, width)]
