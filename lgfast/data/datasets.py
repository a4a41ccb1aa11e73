"""Datasets by name: `load_dataset("cifar100", "data", "train")` gives an ImageSet, decoded once and cached."""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lgfast.data.cache import cache_beside, cache_folder, cached
from lgfast.data.decode import AS_STORED, Decoding
from lgfast.data.image_set import ImageSet
from lgfast.data.sources.chaoyang import chaoyang_source
from lgfast.data.sources.cifar import cifar_source
from lgfast.data.sources.digits import load_digits
from lgfast.data.sources.flowers import flowers_source
from lgfast.data.sources.image_folder import TEST_FRACTION, folder_source
from lgfast.data.sources.source import SPLITS, Source, describe_unread
from lgfast.data.sources.table import table_source
from lgfast.data.sources.tiny_imagenet import tiny_imagenet_source
from lgfast.runtime.paths import user_path

# name -> function(root, split) -> Source
SOURCES: dict[str, Callable[..., Source]] = {
    "cifar10": partial(cifar_source, "cifar10"),
    "cifar100": partial(cifar_source, "cifar100"),
    "flowers102": flowers_source,
    "tiny_imagenet": tiny_imagenet_source,
    "chaoyang": chaoyang_source,
    "folder": folder_source,
}
DOWNLOADABLE = ("cifar10", "cifar100", "flowers102")
DATASET_NAMES = ("digits", *SOURCES)


def load_dataset(
    name: str,
    root: str | Path = "data",
    split: str = "train",
    *,
    download: bool = False,
    skip_broken: bool = False,
    cache_dir: str | Path | None = None,
    decoding: Decoding = AS_STORED,
    test_fraction: float = TEST_FRACTION,
    labels: str | Path = "",
    label_separator: str = "",
) -> ImageSet:
    """One split of a dataset as decoded images.

    Args:
        name: one of DATASET_NAMES; "digits" needs no files.
        root: folder that holds the dataset's official files (for "folder": train/ and test/ or val/, or classes alone).
        split: "train" or "test".
        download: fetch missing official files (CIFAR and Flowers-102; the others have no direct download).
        skip_broken: leave out images that cannot be decoded, with one warning that counts and names them.
        decoding: how image files become pixels; by default as they are stored.
        test_fraction: share of every class that is the test part, in a "folder" that holds classes alone.
        labels: CSV with the labels of the images of a "folder" (`sources.table`); "": its folders are the classes.
        label_separator: parts the classes of an image in that table; "": each has one.
        cache_dir: where decoded images are kept; by default $LGFAST_CACHE, <root>/.lgfast_cache or ~/.cache/lgfast.
    Raises:
        FileNotFoundError: files are missing; the message says what is expected and where to get it.
        ValueError: unknown name or split, damaged file, label out of range.
        UnreadableError: a file or folder cannot be read now.
    """
    if split not in SPLITS:
        raise ValueError(f"load_dataset: split must be one of {', '.join(SPLITS)}, got {split!r}")
    if name == "digits" and not labels:
        return load_digits(split)
    root = user_path(root)
    source = find_source(name, root, split, download, test_fraction, labels, label_separator, not decoding.is_rgb)
    warn_unread(source)
    folder = Path(cache_dir) if cache_dir else cache_folder(root)
    return cached(source, folder, skip_broken, decoding, is_chosen=folder != cache_beside(root))


def warn_unread(source: Source) -> None:
    """Say which pictures are left out because their kind is not read."""
    if source.unread:
        warnings.warn(f"{source.name}: left out {describe_unread(source.unread)}", stacklevel=3)


def find_source(
    name: str,
    root: Path,
    split: str,
    download: bool = False,
    test_fraction: float = TEST_FRACTION,
    labels: str | Path = "",
    label_separator: str = "",
    with_arrays: bool = False,
) -> Source:
    """List the files of a split without decoding them; `with_arrays` includes the .npy files of a "folder"."""
    if labels and name in DATASET_NAMES and name != "folder":
        raise ValueError(f"data.labels: {name} has labels of its own; use data.dataset=folder")
    if name not in SOURCES:
        raise ValueError(f"load_dataset: name must be one of {', '.join(DATASET_NAMES)}, got {name!r}")
    if labels:
        return table_source(root, labels_path(root, labels), split, test_fraction, label_separator)
    if name == "folder":
        return folder_source(root, split, test_fraction, with_arrays)
    if download and name in DOWNLOADABLE:
        return SOURCES[name](root, split, download=True)
    return SOURCES[name](root, split)


def labels_path(root: Path, labels: str | Path) -> Path:
    """Where a table of labels is: at its path, or below the images' folder."""
    path = user_path(labels)
    return path if path.is_file() else root / path
