"""augment_plan in plain PyTorch: the truth for the native kernels.

Every number is a function of (seed, epoch, sample index) alone, in timm's distributions: random resized crop with ten
tries and a centred fallback, flip, RandAugment slots, random erasing with ten tries.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lgfast.ops import random as philox
from lgfast.spec.augment import RAND_AUGMENT_OPS, AugmentSpec, RandAugmentPolicy

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
    columns += [philox.uniform(flip_bits) < spec.flip_prob]
    columns += _erase(spec, philox.uniform(erase_bits), counter, indices)
    columns += philox.sample_bits(counter, indices, philox.NOISE_BLOCK)[:, :2].unbind(-1)
    for slot in range(spec.policy.num_ops):
        columns += _rand_augment_slot(spec.policy, slot, counter, indices)
    return torch.stack([column.to(torch.float64) for column in columns], dim=-1)


def eval_plan(spec: AugmentSpec, sizes: Tensor) -> Tensor:
    """The plan that shows each image whole: (B, P) float64 for sizes (B, 2).

    >>> eval_plan(AugmentSpec(rand_augment=""), torch.tensor([[32, 48]]))[0, 2:4]  # the crop: all rows and columns
    tensor([32., 48.], dtype=torch.float64)
    """
    plan = torch.zeros(len(sizes), len(spec.plan_columns), dtype=torch.float64, device=sizes.device)
    plan[:, 2:4] = sizes
    for slot in range(spec.policy.num_ops):
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


def _rand_augment_slot(policy: RandAugmentPolicy, slot: int, counter: Tensor, indices: Tensor) -> list[Tensor]:
    """Operation number (-1: skipped) and its argument."""
    block = philox.RAND_AUGMENT_BLOCK + 2 * slot
    fire_bits, op_bits, sign_bits, uniform_bits = philox.sample_bits(counter, indices, block).unbind(-1)
    normal_bits = philox.sample_bits(counter, indices, block + 1)[:, :2]
    if math.isinf(policy.magnitude_std):
        magnitude = policy.magnitude * philox.uniform(uniform_bits)
    else:
        magnitude = policy.magnitude + policy.magnitude_std * philox.standard_normal(normal_bits)
    level = magnitude.clamp(0.0, policy.magnitude_max) / 10.0
    sign = 1.0 - 2.0 * (sign_bits & 1).to(torch.float64)
    op = philox.below(op_bits, len(RAND_AUGMENT_OPS))
    is_skipped = philox.uniform(fire_bits) >= policy.prob
    argument = op_argument(op, level, sign, policy.increasing)
    return [torch.where(is_skipped, -1, op), torch.where(is_skipped, 0.0, argument)]


def op_argument(op: Tensor, level: Tensor, sign: Tensor, increasing: bool) -> Tensor:
    """timm's argument of each operation: degrees, bits, threshold, addend, factor or part of the size.

    Args:
        op: (B,) int64, index into RAND_AUGMENT_OPS.
        level: (B,) float64, magnitude / 10.
        sign: (B,) float64, +1 or -1.
        increasing: the strength of posterize, solarize and the enhancers grows with the level (timm's inc1).
    """
    bits, threshold = (level * 4).trunc(), (level * 256).trunc().clamp(max=256)
    factor = level * 1.8 + 0.1
    if increasing:
        bits, threshold = 4 - bits, 256 - threshold
        factor = (1.0 + sign * (level * 0.9)).clamp(min=0.1)
    zero = torch.zeros_like(level)
    shear, translate = sign * (level * 0.3), sign * (level * 0.45)
    arguments = {
        "Rotate": sign * (level * 30.0),
        "Posterize": bits,
        "Solarize": threshold,
        "SolarizeAdd": (level * 110).trunc().clamp(max=128),
        "Color": factor,
        "Contrast": factor,
        "Brightness": factor,
        "Sharpness": factor,
        "ShearX": shear,
        "ShearY": shear,
        "TranslateX": translate,
        "TranslateY": translate,
    }
    table = torch.stack([arguments.get(name, zero) for name in RAND_AUGMENT_OPS], dim=-1)
    return table.gather(-1, op[:, None]).squeeze(-1)
