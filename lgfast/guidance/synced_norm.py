"""Normalise a frozen teacher with the batch statistics of all ranks."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from lgfast.runtime import ranks


class SyncedBatchNorm(nn.Module):
    """Normalises with mean and variance over the batches of all ranks together; updates nothing, no gradients.

    Args:
        norm: gives weight, bias and eps.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, images: Tensor) -> Tensor:
        """images [B, C, h, w], the same shape on every rank."""
        values = images.float()
        mean = average(values)
        variance = average((values - mean[None, :, None, None]).square())
        return F.batch_norm(images, mean, variance, self.weight, self.bias, training=False, eps=self.eps)


def average(values: Tensor) -> Tensor:
    """Average over batch, position and ranks: [B, C, h, w] -> [C]."""
    return ranks.all_reduce_sum(values.mean((0, 2, 3))) / ranks.world()


def use_synced_statistics(model: nn.Module) -> None:
    """Replace every BatchNorm2d of the model."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, SyncedBatchNorm(child))
