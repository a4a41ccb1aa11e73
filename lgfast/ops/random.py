"""Philox 4x32-10, the counter-based generator of every random decision about data, in plain PyTorch.

`sample_bits` gives the random words of one sample: key = seed, counter = (block, epoch, index). Blocks are numbered
here once, so that two uses never share words.
Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import torch
from torch import Tensor

MASK_32 = 0xFFFFFFFF
NUM_TRIES = 10  # rejection sampling of a crop or an erase rectangle, as in timm

# Blocks of four 32-bit words per (seed, epoch, index).
CROP_BLOCK = 0  # to 9, one block per try: area, ratio, top, left
FLIP_BLOCK = 10  # flip, erase or not, shift_y, shift_x
NOISE_BLOCK = 11  # key of the erase noise (two words), vertical flip
ERASE_BLOCK = 12  # to 21, one block per try: area, ratio, top, left
JITTER_BLOCK = 22  # to 23: brightness, contrast, saturation, hue; sort keys of their order
TRIVIAL_AUGMENT_BLOCK = 24  # operation, magnitude, sign
THREE_AUGMENT_BLOCK = 25  # operation, radius
RAND_AUGMENT_BLOCK = 32  # two blocks per slot: fire, op, sign, uniform magnitude; normal magnitude (two words)
PERMUTATION_BLOCK = 1 << 16  # sort keys of the epoch's order
BALANCE_BLOCK = 1 << 18  # sort keys of an order that shows the classes equally often
MIX_BLOCK = 1 << 17  # mixup and cutmix, keyed by the batch's number instead of a sample's index

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a * b, without leaving int64."""
    low, high = a * (b & 0xFFFF), a * (b >> 16)
    return (high + (low >> 16)) >> 16, (low + ((high & 0xFFFF) << 16)) & MASK_32


def philox_4x32(counter: Tensor, key: Tensor) -> Tensor:
    """Ten rounds of Philox.

    Args:
        counter: (..., 4) int64 holding 32-bit words.
        key: (..., 2) int64 holding 32-bit words; broadcasts against counter.
    Returns:
        (..., 4) int64 holding 32-bit random words.
    """
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key.unbind(-1)
    for _ in range(10):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & MASK_32, (k1 + _WEYL[1]) & MASK_32
    return torch.stack((c0, c1, c2, c3), dim=-1)


def sample_bits(counter: Tensor, indices: Tensor, blocks: Tensor | int) -> Tensor:
    """The random words of samples.

    Args:
        counter: (2,) int64, seed and epoch.
        indices: (B,) int64, at least 0.
        blocks: block number, or (K,) int64 of them.
    Returns:
        (B, 4) int64 of 32-bit words, or (B, K, 4).
    """
    seed, epoch = counter.unbind()
    key = torch.stack((seed & MASK_32, (seed >> 32) & MASK_32))
    if isinstance(blocks, Tensor):
        indices = indices[:, None]
    else:
        blocks = torch.full((), blocks, dtype=torch.int64, device=indices.device)
    words = (blocks, epoch & MASK_32, indices & MASK_32, (indices >> 32) & MASK_32)
    return philox_4x32(torch.stack(torch.broadcast_tensors(*words), dim=-1), key)


def uniform(bits: Tensor) -> Tensor:
    """32-bit words to float64 in [0, 1)."""
    return bits.to(torch.float64) * 2.0**-32


def below(bits: Tensor, bound: Tensor | int) -> Tensor:
    """32-bit words to integers in [0, bound), bound below 2**31."""
    return (bits * bound) >> 32


def standard_normal(bits: Tensor) -> Tensor:
    """Two 32-bit words (..., 2) to one float64 normal deviate (Box-Muller, cosine branch)."""
    radius = torch.sqrt(-2.0 * torch.log((bits[..., 0] + 1).to(torch.float64) * 2.0**-32))
    return radius * torch.cos(2.0 * torch.pi * uniform(bits[..., 1]))
