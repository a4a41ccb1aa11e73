"""A dataset split as image files, not decoded: what the `dali` loader reads."""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lgfast.data.cache import decode_or_error
from lgfast.data.datasets import SPLITS, find_source
from lgfast.data.decode import map_in_order, show_progress
from lgfast.data.errors import some
from lgfast.data.image_set import LabelledImages


@dataclass(frozen=True)
class FileSet(LabelledImages):
    """Image files of one split, in the order in which `load_dataset` decodes them."""

    name: str
    paths: Sequence[Path]
    labels: Tensor  # int64 [n]
    class_names: tuple[str, ...]
    content_hash: str  # of the files' bytes, the labels and the class names, wherever the files lie

    def pick(self, indices: Tensor) -> dict[str, Any]:
        return {"paths": [self.paths[index] for index in indices.tolist()]}


def load_files(
    name: str, root: str | Path = "data", split: str = "train", *, download: bool = False, skip_broken: bool = False
) -> FileSet:
    """One split of a dataset of image files; arguments as `load_dataset`. Every file is read once, for the hash.

    skip_broken: decode every file once too, and leave out those that fail, with a warning that counts and names them;
        the order of an epoch is then that of `load_dataset(..., skip_broken=True)`.
    Raises:
        ValueError: unknown name or split, or a dataset that is not stored as image files.
    """
    if split not in SPLITS:
        raise ValueError(f"load_files: split must be one of {', '.join(SPLITS)}, got {split!r}")
    source = None if name == "digits" else find_source(name, Path(root).expanduser(), split, download)
    records = source.read() if source else None
    if records is None or isinstance(records.images, np.ndarray):
        raise ValueError(
            f"load_files: {name} is not stored as image files, which the dali loader reads; use data.loader=resident"
        )
    pairs = list(zip(records.images, records.labels, strict=True))
    if skip_broken:
        pairs = leave_out_broken(pairs, source.name)
    paths, labels = [path for path, _ in pairs], torch.tensor([label for _, label in pairs], dtype=torch.int64)
    content_hash = hash_files(paths, labels, source.class_names, source.name)
    return FileSet(source.name, paths, labels, source.class_names, content_hash)


def leave_out_broken(pairs: list[tuple[Path, int]], name: str) -> list[tuple[Path, int]]:
    """The (path, label) pairs whose file can be decoded; a warning counts and names the others."""
    results = list(
        show_progress(map_in_order(lambda pair: decode_error(pair[0]), pairs), len(pairs), f"checking {name}")
    )
    broken = [error for error in results if error]
    if broken:
        warnings.warn(f"{name}: skipped {len(broken)} broken images: {some(broken)}", stacklevel=3)
    return [pair for pair, error in zip(pairs, results, strict=True) if not error]


def hash_files(paths: Sequence[Path], labels: Tensor, class_names: tuple[str, ...], name: str) -> str:
    digests = map_in_order(lambda path: hashlib.blake2b(path.read_bytes()).digest(), paths)
    total = hashlib.blake2b(b"".join(show_progress(digests, len(paths), f"reading {name}")), digest_size=16)
    total.update(labels.numpy().tobytes() + "\n".join(class_names).encode("utf-8", "surrogatepass"))
    return total.hexdigest()


def decode_error(path: Path) -> str:
    """Why the file cannot be decoded, with its name; "" if it can."""
    result = decode_or_error(path)
    return str(result) if isinstance(result, ValueError) else ""
