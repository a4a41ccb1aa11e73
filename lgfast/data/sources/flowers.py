"""Oxford Flowers-102 from the official files (https://www.robots.ox.ac.uk/~vgg/data/flowers/102/).

Train is the official train and validation parts together (2,040 images), as in the papers on tiny datasets.
"""

from pathlib import Path
from typing import Any

import numpy as np

from lgfast.data.errors import one_line
from lgfast.data.sources.download import Remote, fetch_missing
from lgfast.data.sources.source import Source, file_source, find_folder, locate, require_files

PAGE = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
FOLDERS = ("flowers-102", "flowers")
NUM_CLASSES = 102
SPLIT_KEYS = {"train": ("trnid", "valid"), "test": ("tstid",)}


def flowers_source(root: Path, split: str, download: bool = False) -> Source:
    """Find the split of Flowers-102 in root/flowers-102 or root/flowers: jpg/, imagelabels.mat and setid.mat."""
    target = locate(root, FOLDERS, "setid.mat") or root / FOLDERS[0]
    by_hand = f"put 102flowers.tgz (unpacked: jpg/), imagelabels.mat and setid.mat from {PAGE} into {target}"
    help_text = f"download it (--data.download, or download=True), or {by_hand}"
    label_file, split_file = target / "imagelabels.mat", target / "setid.mat"
    if download:
        remote_lists, remote_images = official_files()
        fetch_missing(
            "flowers102", target, remote_lists, lambda: not (label_file.is_file() and split_file.is_file()), by_hand
        )
    folder = find_folder(root, FOLDERS, "setid.mat", help_text)
    require_files([label_file], help_text)

    labels = load_numbers(label_file, "labels", 1, NUM_CLASSES, help_text) - 1
    ids = np.concatenate([load_numbers(split_file, key, 1, len(labels), help_text) for key in SPLIT_KEYS[split]])
    images = [folder / "jpg" / f"image_{number:05d}.jpg" for number in ids.tolist()]
    if download:
        fetch_missing("flowers102", folder, remote_images, lambda: not all(map(Path.is_file, images)), by_hand)
    require_files(images, help_text)
    class_names = tuple(str(number) for number in range(1, NUM_CLASSES + 1))  # the official files have no names
    lists = [label_file, split_file]
    return file_source(f"flowers102-{split}", folder, images, labels[ids - 1].tolist(), class_names, lists)


def official_files() -> tuple[list[Remote], list[Remote]]:
    """The files that list the images, and the images."""
    from torchvision.datasets import Flowers102

    files = {key: (Flowers102._download_url_prefix + name, md5) for key, (name, md5) in Flowers102._file_dict.items()}
    lists = [Remote(*files[key], is_archive=False) for key in ("label", "setid")]
    return lists, [Remote(*files["image"], is_archive=True)]


def load_numbers(path: Path, key: str, low: int, high: int, help_text: str) -> np.ndarray:
    """The integers of one variable of a .mat file, each in [low, high]."""
    content = load_mat(path, help_text)
    if key not in content:
        raise ValueError(f"{path}: no variable '{key}'; {help_text}")
    numbers = np.asarray(content[key]).ravel()
    if numbers.dtype.kind not in "iuf":
        raise ValueError(f"{path}: '{key}' must hold numbers, got {numbers.dtype}; {help_text}")
    wrong = numbers[~((numbers >= low) & (numbers <= high) & (numbers == np.floor(numbers)))]
    if len(wrong):
        raise ValueError(f"{path}: '{key}' must be whole and lie in [{low}, {high}], got {wrong[0]}; {help_text}")
    return numbers.astype(np.int64)


def load_mat(path: Path, help_text: str) -> dict[str, Any]:
    from scipy.io import loadmat

    try:
        return loadmat(path)
    except Exception as error:  # scipy raises a different type for each way a file can be damaged
        raise ValueError(f"{path}: truncated or damaged ({one_line(error)}); delete it and {help_text}") from error
