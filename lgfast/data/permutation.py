"""Draw the order of an epoch: a pure function of (seed, epoch), the same on every device."""

import torch
from torch import Tensor

from lgfast.ops.random import BALANCE_BLOCK, PERMUTATION_BLOCK, sample_bits

SUBSET_EPOCH = -1  # no training epoch has this number, so subsets are independent of every epoch's order


def epoch_permutation(num_images: int, seed: int, epoch: int, device: torch.device | str | None = None) -> Tensor:
    """Return int64 [num_images]: the epoch's images in training order, whatever the batch size or number of ranks."""
    counter = torch.tensor([seed, epoch], dtype=torch.int64, device=device)
    bits = sample_bits(counter, torch.arange(num_images, dtype=torch.int64, device=device), PERMUTATION_BLOCK)
    return torch.argsort((bits[:, 1] << 32) | bits[:, 0], stable=True)  # 64 bits: ties are out of the question


def random_permutation(num_images: int, seed: int) -> Tensor:
    """Return int64 [num_images]: a permutation for choosing subsets."""
    return epoch_permutation(num_images, seed, SUBSET_EPOCH)


def balanced_order(labels: Tensor, seed: int, epoch: int) -> Tensor:
    """Return int64 [n]: as many images as there are, in which every class that has images appears equally often.

    A class with too few images shows each of them several times. One with too many shows a random part, another one in
    every epoch. What does not divide goes to the first classes, in another order in every epoch.

    Args:
        labels: int64 [n], on the CPU.
    """
    counts = torch.bincount(labels)
    classes = counts.nonzero().flatten().roll(-epoch % max(1, int((counts > 0).sum())))
    quota = torch.zeros_like(counts)
    quota[classes] = len(labels) // len(classes)
    quota[classes[: len(labels) % len(classes)]] += 1

    rounds = -(-quota // counts.clamp(min=1))  # how often a class is gone through
    of_class = rounds[labels]
    images = torch.arange(len(labels)).repeat_interleave(of_class)
    round_number = torch.arange(len(images)) - (of_class.cumsum(0) - of_class).repeat_interleave(of_class)
    bits = sample_bits(torch.tensor([seed, epoch]), images + len(labels) * round_number, BALANCE_BLOCK)
    order = torch.argsort((bits[:, 1] << 32) | bits[:, 0], stable=True)
    order = order[torch.argsort(round_number[order], stable=True)]
    order = order[torch.argsort(labels[images[order]], stable=True)]  # by class, then by round, then at random
    sizes = counts * rounds
    rank = torch.arange(len(images)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    chosen = order[rank < quota.repeat_interleave(sizes)]
    return images[chosen[torch.argsort((bits[chosen, 3] << 32) | bits[chosen, 2], stable=True)]]
