"""Bring image files to where `augment` reads them: Pillow decodes them on all cores, a batch at a time; none is
kept."""

from functools import partial

import numpy as np
import torch
from torch import Tensor

from lgfast.data.batch import Batch
from lgfast.data.decode import decode_image, map_in_order
from lgfast.data.file_set import FileSet
from lgfast.data.image_set import image_offsets
from lgfast.ops.augment import augment, augment_plan, check_source_sizes, eval_plan
from lgfast.spec.augment import AugmentSpec


class FileImages:
    """Makes batches of a FileSet; the views are those of the decoded set, bit for bit.

    Args:
        files: the images.
        device: where views are made.
    """

    index_device = torch.device("cpu")

    def __init__(self, files: FileSet, device: torch.device) -> None:
        self.files, self.device = files, device

    def make(self, indices: Tensor, counter: Tensor | None, spec: AugmentSpec, dtype: torch.dtype) -> Batch:
        """As `ResidentImages.make`: the batch of `indices` (B,), on CPU; counter (2,) int64, None: evaluation views.

        Raises:
            ValueError: a file cannot be decoded; the message names it. On a GPU, an image is too large for `augment`.
        """
        decode = partial(decode_image, decoding=self.files.decoding)
        decoded = list(map_in_order(decode, [self.files.paths[index] for index in indices.tolist()]))
        sizes = torch.tensor([image.shape[:2] for image in decoded], dtype=torch.int32)
        check_source_sizes(spec, sizes, self.device)
        pixels = torch.from_numpy(np.concatenate([image.reshape(-1) for image in decoded]))
        pixels, offsets, sizes, on_device = (
            tensor.to(self.device) for tensor in (pixels, image_offsets(sizes), sizes, indices)
        )
        plan = eval_plan(spec, sizes) if counter is None else augment_plan(spec, sizes, on_device, counter)
        rows = torch.arange(len(indices), device=self.device)
        views = augment(pixels, offsets, sizes, rows, plan, spec, dtype)
        return Batch(*views, self.files.labels[indices].to(self.device), on_device)
