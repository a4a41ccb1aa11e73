"""A dataset split as image files, not decoded: what the `dali` loader reads."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lgfast.data.cache import decode_or_error
from lgfast.data.datasets import SPLITS, find_source
from lgfast.data.decode import map_in_order


@dataclass(frozen=True)
class FileSet:
    """Image files of one split, in the order in which `load_dataset` decodes them."""

    name: str
    paths: Sequence[Path]
    labels: Tensor  # int64 [n]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def load_files(name: str, root: str | Path = "data", split: str = "train", *, skip_broken: bool = False) -> FileSet:
    """One split of a dataset of image files; arguments as `load_dataset`.

    skip_broken: decode every file once, and leave out those that fail, with a warning that counts and names them; the
        order of an epoch is then that of `load_dataset(..., skip_broken=True)`.
    Raises:
        ValueError: unknown name or split, or a dataset that is not stored as image files.
    """
    if split not in SPLITS:
        raise ValueError(f"load_files: split must be one of {', '.join(SPLITS)}, got {split!r}")
    source = find_source(name, Path(root).expanduser(), split)
    records = source.read()
    if isinstance(records.images, np.ndarray):
        raise ValueError(f"load_files: {name} is not stored as image files; use load_dataset and another loader")
    pairs = list(zip(records.images, records.labels, strict=True))
    if skip_broken:
        results = list(map_in_order(lambda pair: decode_error(pair[0]), pairs))
        broken = [error for error in results if error]
        pairs = [pair for pair, error in zip(pairs, results, strict=True) if not error]
        if broken:
            names = "; ".join(broken[:3])
            warnings.warn(f"{source.name}: {len(broken)} broken images skipped, first {names}", stacklevel=2)
    labels = torch.tensor([label for _, label in pairs], dtype=torch.int64)
    return FileSet(source.name, [path for path, _ in pairs], labels, records.class_names)


def decode_error(path: Path) -> str:
    """Why the file cannot be decoded, with its name; "" if it can."""
    result = decode_or_error(path)
    return str(result) if isinstance(result, ValueError) else ""
