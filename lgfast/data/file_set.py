"""Hold a split as image files, not decoded, which the `dali` loader reads."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lgfast.data.cache import decode_or_error, warn_skipped
from lgfast.data.datasets import SPLITS, find_source, warn_unread
from lgfast.data.decode import AS_STORED, Decoding, map_in_order, show_progress
from lgfast.data.image_set import LabelledImages
from lgfast.data.read import read_file
from lgfast.data.sources.image_folder import TEST_FRACTION


@dataclass(frozen=True)
class FileSet(LabelledImages):
    """Image files of one split, in the order in which `load_dataset` decodes them."""

    name: str
    paths: Sequence[Path]
    labels: Tensor  # int64 [n]
    class_names: tuple[str, ...]
    content_hash: str  # of the files' bytes, the labels, the class names and the decoding, wherever the files lie
    decoding: Decoding = AS_STORED

    def pick(self, indices: Tensor) -> dict[str, Any]:
        return {"paths": [self.paths[index] for index in indices.tolist()]}


def load_files(
    name: str,
    root: str | Path = "data",
    split: str = "train",
    *,
    download: bool = False,
    skip_broken: bool = False,
    decoding: Decoding = AS_STORED,
    test_fraction: float = TEST_FRACTION,
    labels: str | Path = "",
) -> FileSet:
    """One split of a dataset of image files; arguments as `load_dataset`. Every file is read once, for the hash.

    skip_broken: decode every file once too, and leave out those that fail, with a warning that counts and names them;
        the order of an epoch is then that of `load_dataset(..., skip_broken=True)`.
    Raises:
        ValueError: unknown name or split, or a dataset that is not stored as image files.
    """
    if split not in SPLITS:
        raise ValueError(f"load_files: split must be one of {', '.join(SPLITS)}, got {split!r}")
    root = Path(root).expanduser()
    source = None if name == "digits" else find_source(name, root, split, download, test_fraction, labels)
    if source is None or not source.images:
        raise ValueError(
            f"load_files: {name} is not stored as image files, which the dali loader reads; use data.loader=resident"
        )
    warn_unread(source)
    pairs = list(zip(*source.read(), strict=True))
    if skip_broken:
        pairs = leave_out_broken(pairs, source.name, decoding)
    paths, numbers = [path for path, _ in pairs], torch.tensor([label for _, label in pairs], dtype=torch.int64)
    content_hash = hash_files(paths, numbers, source.class_names, source.name, decoding)
    return FileSet(source.name, paths, numbers, source.class_names, content_hash, decoding)


def leave_out_broken(pairs: list[tuple[Path, int]], name: str, decoding: Decoding) -> list[tuple[Path, int]]:
    """The (path, label) pairs whose file can be decoded; a warning counts and names the others."""
    errors = map_in_order(lambda pair: decode_error(pair[0], decoding), pairs)
    results = list(show_progress(errors, len(pairs), f"checking {name}"))
    warn_skipped(name, [error for error in results if error])
    return [pair for pair, error in zip(pairs, results, strict=True) if not error]


def hash_files(
    paths: Sequence[Path], labels: Tensor, class_names: tuple[str, ...], name: str, decoding: Decoding
) -> str:
    digests = map_in_order(lambda path: hashlib.blake2b(read_file(path)).digest(), paths)
    total = hashlib.blake2b(b"".join(show_progress(digests, len(paths), f"reading {name}")), digest_size=16)
    total.update(labels.numpy().tobytes() + "\n".join(class_names).encode("utf-8", "surrogatepass"))
    total.update("".join(decoding.changes()).encode())
    return total.hexdigest()


def decode_error(path: Path, decoding: Decoding) -> str:
    """Return why the file is broken, with its name; "" if it is sound."""
    result = decode_or_error(path, decoding)
    return str(result) if isinstance(result, ValueError) else ""
