"""scikit-learn's digits: 1,797 scans of 8x8, inside the package's dependency, so that a first run needs no network."""

import functools
import importlib.util
from pathlib import Path

import numpy as np
import torch

from lgfast.data.image_set import ImageSet, image_set_from_arrays, stratified_indices

NUM_TEST = 600
SPLIT_SEED = 0
GREY_LEVELS = 16  # the scans hold 0..16


def read_scans() -> tuple[np.ndarray, np.ndarray]:
    """Scans [1797, 8, 8] and their digits, from scikit-learn's own file: importing it takes longer than the rest."""
    spec = importlib.util.find_spec("sklearn")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(folder) / "datasets" / "data" / "digits.csv.gz").is_file():
            table = read_table(path)
            return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits as load_scans  # a version that keeps them elsewhere

    scans = load_scans()
    return scans.images, scans.target


@functools.cache  # the file of an installed package; a guided run asks four times
def read_table(path: Path) -> np.ndarray:
    table = np.loadtxt(path, delimiter=",")
    table.flags.writeable = False
    return table


def load_digits(split: str) -> ImageSet:
    """The fixed split into 1,197 training and 600 test images, grey repeated over three channels, 0..255."""
    scans, labels = read_scans()
    grey = np.round(scans * (255 / GREY_LEVELS)).astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=3)
    is_test = torch.zeros(len(images), dtype=torch.bool)
    is_test[stratified_indices(torch.from_numpy(labels).long(), NUM_TEST, SPLIT_SEED)] = True
    chosen = (is_test if split == "test" else ~is_test).numpy()
    names = tuple(str(digit) for digit in range(10))
    return image_set_from_arrays(f"digits-{split}", images[chosen], labels[chosen], names)
