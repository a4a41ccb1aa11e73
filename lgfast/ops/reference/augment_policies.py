"""Draw the operations of a view in plain PyTorch, as their policies say: the truth for the native kernels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lgfast.ops import random as philox
from lgfast.spec.augment import AUGMENT_OPS, JITTER_OPS, RAND_AUGMENT_OPS, AugmentSpec, RandAugmentPolicy

# torchvision's TrivialAugmentWide, in its order: the strongest magnitude of those that have one, 0.0 for the others.
TRIVIAL_AUGMENT = {
    "Identity": 0.0,
    "ShearX": 0.99,
    "ShearY": 0.99,
    "TranslateX": 32.0,
    "TranslateY": 32.0,
    "Rotate": 135.0,
    "Brightness": 0.99,
    "Color": 0.99,
    "Contrast": 0.99,
    "Sharpness": 0.99,
    "Posterize": 0.0,
    "Solarize": 0.0,
    "AutoContrast": 0.0,
    "Equalize": 0.0,
}
NUM_MAGNITUDES = 31
BLUR_RADIUS = (0.1, 2.0)  # of three-augment, pixels


def policy_slots(spec: AugmentSpec, counter: Tensor, indices: Tensor) -> list[Tensor]:
    """Return the columns of the policy's slots: operation (-1: skipped) and argument of each."""
    if spec.policy == "rand_augment" or spec.num_policy_ops == 0:
        policy, slots = spec.rand_augment_policy, range(spec.num_policy_ops)
        return [column for slot in slots for column in _rand_augment_slot(policy, slot, counter, indices)]
    draw = _trivial_augment if spec.policy == "trivial_augment" else _three_augment
    return draw(counter, indices)


def color_jitter(strengths: tuple[float, ...], counter: Tensor, indices: Tensor) -> list[Tensor]:
    """Draw torchvision's ColorJitter: operation and argument of those whose strength is not 0, in random order."""
    chosen = [place for place, strength in enumerate(strengths) if strength > 0]
    if not chosen:
        return []
    bits = philox.sample_bits(counter, indices, philox.JITTER_BLOCK)[:, chosen]
    keys = philox.sample_bits(counter, indices, philox.JITTER_BLOCK + 1)[:, chosen]
    bounds = [(-s, s) if JITTER_OPS[p] == "Hue" else (max(0.0, 1 - s), 1 + s) for p, s in enumerate(strengths)]
    low, high = torch.tensor([bounds[place] for place in chosen], dtype=torch.float64, device=bits.device).unbind(1)
    arguments = low + (high - low) * philox.uniform(bits)
    numbers = [AUGMENT_OPS.index(JITTER_OPS[place]) for place in chosen]
    ops = torch.tensor(numbers, device=bits.device).expand(len(bits), -1)
    order = keys.argsort(dim=1, stable=True)
    pairs = zip(ops.gather(1, order).unbind(1), arguments.gather(1, order).unbind(1), strict=True)
    return [column for pair in pairs for column in pair]


def _numbers(names: list[str], device: torch.device) -> Tensor:
    """Return the indices into AUGMENT_OPS; -1 for Identity."""
    places = [AUGMENT_OPS.index(name) if name != "Identity" else -1 for name in names]
    return torch.tensor(places, device=device)


def trivial_magnitudes(strongest: float) -> Tensor:
    """Return torchvision's 31 magnitudes, float32, as `torch.linspace` gives them on processors that fuse a * b + c."""
    end = torch.tensor(strongest, dtype=torch.float32)
    step, place = (end / (NUM_MAGNITUDES - 1)).double(), torch.arange(NUM_MAGNITUDES, dtype=torch.float64)
    from_end = end.double() - step * (NUM_MAGNITUDES - 1 - place)
    return torch.where(place < NUM_MAGNITUDES // 2, step * place, from_end).float()


def trivial_arguments() -> Tensor:
    """Return each operation's argument at each magnitude and at its negative, (14, 31, 2) float64."""
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64)
    rows = []
    place = torch.arange(NUM_MAGNITUDES, dtype=torch.float64)[:, None]
    for name, strongest in TRIVIAL_AUGMENT.items():
        value = trivial_magnitudes(strongest).double()[:, None] * sign
        if name.startswith("Shear"):  # by an angle in degrees and back
            value = torch.tan((torch.atan(value) * (180.0 / math.pi)) * (math.pi / 180.0))
        elif name.startswith("Translate"):
            value = -value.trunc()
        elif name in JITTER_OPS or name == "Sharpness":
            value = 1.0 + value
        elif name == "Posterize":
            value = (8.0 - (place / 5).round()).expand(-1, 2)
        elif name == "Solarize":  # values below 255 ... 0 by steps of 8.5 stay
            value = (255.0 - 8.5 * place).ceil().expand(-1, 2)
        rows.append(value)
    return torch.stack(rows)


def _trivial_augment(counter: Tensor, indices: Tensor) -> list[Tensor]:
    op_bits, magnitude_bits, sign_bits, _ = philox.sample_bits(counter, indices, philox.TRIVIAL_AUGMENT_BLOCK).unbind(
        -1
    )
    names = [name + "Pixels" if name.startswith("Translate") else name for name in TRIVIAL_AUGMENT]
    choice, place = philox.below(op_bits, len(names)), philox.below(magnitude_bits, NUM_MAGNITUDES)
    arguments = trivial_arguments().to(indices.device)
    return [_numbers(names, indices.device)[choice], arguments[choice, place, sign_bits & 1]]


def _three_augment(counter: Tensor, indices: Tensor) -> list[Tensor]:
    op_bits, radius_bits, *_ = philox.sample_bits(counter, indices, philox.THREE_AUGMENT_BLOCK).unbind(-1)
    radius = BLUR_RADIUS[0] + (BLUR_RADIUS[1] - BLUR_RADIUS[0]) * philox.uniform(radius_bits)
    arguments = torch.stack((torch.full_like(radius, 128.0), torch.zeros_like(radius), radius), dim=-1)
    choice = philox.below(op_bits, 3)
    numbers = _numbers(["Solarize", "Color", "GaussianBlur"], indices.device)
    return [numbers[choice], arguments.gather(1, choice[:, None]).squeeze(1)]


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
