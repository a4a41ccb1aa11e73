"""Views by Pillow and timm, one image at a time: what the workers of the `timm` loader run."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lgfast.ops.reference.augment import apply_plan
from lgfast.ops.reference.augment_plan import augment_plan
from lgfast.spec.augment import AugmentSpec


def augment_image(pixels: np.ndarray, plan_row: Tensor, spec: AugmentSpec) -> tuple[Tensor, Tensor | None]:
    """One view of one image.

    Args:
        pixels: (h, w, 3) uint8.
        plan_row: (P,) float64, one row of `augment_plan` or `eval_plan`.
        spec: the specification that the plan was drawn from.
    Returns:
        image (3, S, S) float32; teacher's input (3, s, s) float32 or None.
    """
    return apply_plan(Image.fromarray(pixels), plan_row.tolist(), spec)


def augment_sample(pixels: np.ndarray, spec: AugmentSpec, index: int, seed: int, epoch: int):
    """The view that (seed, epoch, index) names, drawn and applied; arguments and result as `augment_image`."""
    sizes = torch.tensor([pixels.shape[:2]], dtype=torch.int32)
    plan = augment_plan(spec, sizes, torch.tensor([index]), torch.tensor([seed, epoch]))
    return augment_image(pixels, plan[0], spec)
