"""Parts of a set of images for a test or a cross-validation: classes evenly spread, groups never torn apart."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lgfast.data.errors import some
from lgfast.data.image_set import Images, LabelledImages

SEED = 0  # one cut for every run on the same images, whatever the run's own seed


def group_names(images: LabelledImages, pattern: str, root: str) -> list[str]:
    """What each image's file shares with those of its group; its own path where the pattern does not match.

    Args:
        pattern: regular expression, searched in the path below the root; its first group counts, or all that it found.
    Raises:
        ValueError: the images have no files.
    """
    if images.paths is None:
        raise ValueError(f"data.group: {images.name} has no image files whose names could tell groups")
    search = re.compile(pattern).search
    names = []
    for path in images.paths:
        below = str(path).removeprefix(root).lstrip("/")
        found = search(below)
        names.append(below if found is None else found.group(1 if found.re.groups else 0) or below)
    return names


def fold_numbers(labels: Tensor, num_folds: int, groups: Sequence[str] | None = None) -> Tensor:
    """The fold of each image, int64 [n], 0 to num_folds - 1; each has its share of every class, as far as groups allow.

    Args:
        labels: int64 [n].
        groups: name of each image's group; images of one group are in one fold. None: every image is alone.
    Raises:
        ValueError: there are fewer images, or groups, than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    units = len(labels) if groups is None else len(set(groups))
    if units < num_folds:
        what = "images" if groups is None else "groups"
        raise ValueError(f"{num_folds} folds need as many {what}, got {units}")
    if (most := int(torch.bincount(labels).max())) < num_folds:
        raise ValueError(f"{num_folds} folds need a class of as many images, the largest has {most}")
    make = StratifiedKFold if groups is None else StratifiedGroupKFold
    cut = make(num_folds, shuffle=True, random_state=SEED)
    numbers = torch.zeros(len(labels), dtype=torch.int64)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes with fewer images than there are folds
        for number, (_, inside) in enumerate(cut.split(np.zeros(len(labels)), labels.numpy(), groups)):
            numbers[torch.from_numpy(inside)] = number
    return numbers


def split_fold(images: Images, numbers: Tensor, fold: int) -> tuple[Images, Images]:
    """Split the images into the other folds and this fold."""
    return images.subset((numbers != fold).nonzero().flatten()), images.subset((numbers == fold).nonzero().flatten())


def folds_of(fraction: float, labels: Tensor, groups: Sequence[str] | None = None) -> int:
    """How many folds have about this share of the images each; no more than the largest class has images, nor than
    there are groups."""
    most = int(torch.bincount(labels).max())
    return max(2, min(round(1 / fraction), most if groups is None else min(most, len(set(groups)))))


def check_some_share(names: Sequence[str], pattern: str) -> None:
    """Raise a ValueError where every image is a group of its own, so that groups keep nothing together."""
    if len(set(names)) == len(names):
        raise ValueError(
            f"data.group: no two images have what {pattern!r} finds in their paths in common, nor is it a column of "
            "data.labels that says so; correct it, or drop it to let every image stand alone"
        )


def check_groups_apart(
    first: LabelledImages,
    first_groups: Sequence[str] | None,
    second: LabelledImages,
    second_groups: Sequence[str] | None,
) -> None:
    """Raise a ValueError where images of one group are in both sets."""
    torn = set(first_groups or ()) & set(second_groups or ())
    if torn:
        raise ValueError(
            f"data.group: {len(torn)} groups are in {first.name} and in {second.name} ({some(sorted(torn))}), so the "
            "test would know them; move each to one part, or give no parts and let lgfast split the images"
        )
