"""The order of an epoch: a pure function of (seed, epoch), the same on every device."""

import torch
from torch import Tensor

from lgfast.ops.random import PERMUTATION_BLOCK, sample_bits

SUBSET_EPOCH = -1  # no training epoch has this number, so subsets are independent of every epoch's order


def epoch_permutation(num_images: int, seed: int, epoch: int, device: torch.device | str | None = None) -> Tensor:
    """int64 [num_images]: the images of this epoch in training order, whatever the batch size or number of ranks."""
    counter = torch.tensor([seed, epoch], dtype=torch.int64, device=device)
    bits = sample_bits(counter, torch.arange(num_images, dtype=torch.int64, device=device), PERMUTATION_BLOCK)
    return torch.argsort((bits[:, 1] << 32) | bits[:, 0], stable=True)  # 64 bits: ties are out of the question


def random_permutation(num_images: int, seed: int) -> Tensor:
    """int64 [num_images]: a permutation for choosing subsets."""
    return epoch_permutation(num_images, seed, SUBSET_EPOCH)
