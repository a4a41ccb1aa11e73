"""The contract of the training loaders: order, sharding, position and resume. A loader kind adds `views`."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Generic

import torch
from torch import Tensor

from lgfast.data.batch import Batch
from lgfast.data.image_set import Images
from lgfast.data.permutation import balanced_order, epoch_permutation
from lgfast.ops.mix import mix_images, mix_labels, mix_plan
from lgfast.ops.teacher_input import teacher_input
from lgfast.spec.augment import AugmentSpec


class EpochLoader(ABC, Generic[Images]):
    """Iterates over the shuffled, augmented batches of one epoch; the last partial batch is dropped.

    The order depends on (seed, epoch) alone and an image's view on (seed, epoch, index) alone: neither the loader
    kind, the number of workers or ranks, nor a resume changes them. `iter()` starts at the first batch of the epoch;
    after `load_state_dict` it goes on with the batch that follows the saved position.

    Under mixup or cutmix (`spec`) every image is mixed with the one half a batch further on, in a way that depends on
    (seed, epoch, number of the batch) alone; labels are then probabilities [B, K]. Partners must come from the same
    rank, so with several ranks each needs an even share of the batch; the mixtures are then those of one rank.

    Args:
        image_set: the training images.
        spec: distribution of the views.
        batch_size: images of one step over all ranks; rank r gets elements r, r + world, ... of each batch.
        seed: of order and views.
        rank, world: this process and the number of processes.
        device: where batches are delivered.
        dtype: of images and teacher_images.
        num_views: epoch e shows the views of epoch e modulo this; 0: new ones every epoch.
        balanced: show the classes equally often (`balanced_order`); an image that recurs in an epoch has one view.
    """

    def __init__(
        self,
        image_set: Images,
        spec: AugmentSpec,
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        num_views: int = 0,
        balanced: bool = False,
    ) -> None:
        check_sharding(batch_size, rank, world)
        if spec.mixes and world > 1 and batch_size // world % 2:
            raise ValueError(
                f"batch_size: mixup and cutmix pair images within a rank, which needs an even share of the batch; "
                f"got {batch_size} over {world} ranks"
            )
        self.image_set, self.spec, self.batch_size, self.seed = image_set, spec, batch_size, seed
        self.rank, self.world, self.device, self.dtype = rank, world, torch.device(device), dtype
        self.num_views, self.balanced = num_views, balanced
        self.epoch = 0
        self.position = 0  # batches of this epoch handed out
        self.next_position = 0  # at which the next iter() starts

    @abstractmethod
    def views(self, steps: Tensor, epoch: int) -> Iterator[Batch]:
        """A batch for each row of `steps` (int64 [steps, batch_size / world], on `index_device`): the images' views in
        `epoch`."""

    @property
    def index_device(self) -> torch.device:
        """The device on which `views` takes its indices."""
        return torch.device("cpu")

    @property
    def view_epoch(self) -> int:
        """The epoch whose views the current epoch shows."""
        return self.epoch % self.num_views if self.num_views else self.epoch

    def __len__(self) -> int:
        return len(self.image_set) // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        first = self.position = self.next_position
        self.next_position = 0
        batches = self.views(self.epoch_indices(self.index_device)[first:], self.view_epoch)
        if self.spec.mixes:
            batches = self.mixed(batches, first)
        for batch in batches:
            self.position += 1
            yield batch

    def mixed(self, batches: Iterator[Batch], first: int) -> Iterator[Batch]:
        """The batches `first`, `first + 1`, ... of the epoch under mixup or cutmix.

        The teacher's input is made anew from the mixed images.
        """
        plan = mix_plan(self.spec, torch.tensor([self.seed, self.epoch]), torch.arange(first, len(self)))
        for row, batch in zip(plan.to(self.device), batches, strict=True):
            images, size = mix_images(batch.images, row), self.spec.teacher_size
            yield batch._replace(
                images=images,
                teacher_images=teacher_input(images, size) if size else None,
                labels=mix_labels(batch.labels, row, self.image_set.num_classes),
            )

    def seek(self, epoch: int, position: int = 0) -> None:
        """Start the next `iter()` at this batch of this epoch."""
        self.epoch, self.position, self.next_position = epoch, position, position

    def drop_teacher_images(self) -> None:
        """Make no more teacher images, from the next `iter()` on; the images are those that there would have been."""
        self.spec = replace(self.spec, teacher_size=0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; a position that was loaded for this same epoch is kept."""
        if epoch != self.epoch:
            self.seek(epoch)

    def epoch_indices(self, device: torch.device | str | None = None) -> Tensor:
        """int64 [len(self), batch_size / world]: this rank's images in each batch of the current epoch."""
        if self.balanced:
            order = balanced_order(self.image_set.labels, self.seed, self.epoch).to(device)
        else:
            order = epoch_permutation(len(self.image_set), self.seed, self.epoch, device)
        order = order[: len(self) * self.batch_size].view(len(self), self.batch_size)
        return order[:, self.rank :: self.world].contiguous()

    def state_dict(self) -> dict[str, Any]:
        """The position of the loader; equal on all ranks."""
        return {"epoch": self.epoch, "position": self.position, "batch_size": self.batch_size, "seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the batch at which `state` was taken.

        Raises:
            ValueError: the state belongs to another batch size or seed, so the remaining batches would differ.
        """
        for name in ("batch_size", "seed"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"load_state_dict: {name} must be {state[name]} as in the saved state, got {getattr(self, name)}"
                )
        self.seek(state["epoch"], state["position"])


def check_sharding(batch_size: int, rank: int, world: int) -> None:
    if batch_size < 1 or batch_size % world:
        raise ValueError(f"batch_size: must be a positive multiple of the {world} ranks, got {batch_size}")
    if not 0 <= rank < world:
        raise ValueError(f"rank: must lie in [0, {world}), got {rank}")
