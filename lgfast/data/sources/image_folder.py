"""Any class-per-folder tree: <root>/train/<class>/*.jpg and <root>/test/<class>/*.jpg (or val/)."""

import os
from functools import partial
from pathlib import Path

from lgfast.data.sources.source import Records, Source

SPLIT_FOLDERS = {"train": ("train",), "test": ("test", "val")}
IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
EXPECTED = "expected <root>/train/<class>/<image> and <root>/test/<class>/<image> (or val/ in place of test/)"


def folder_source(root: Path, split: str) -> Source:
    """A class-per-folder split; the classes are the sorted folder names under train/, or of a test part alone."""
    folder = split_folder(root, split)
    is_alone = split == "test" and not (root / "train").is_dir()
    class_names = list_classes(folder if is_alone else root / "train")
    unknown = sorted(set(list_classes(folder)) - set(class_names))
    if unknown:
        raise ValueError(
            f"{folder}: class folders {unknown[:5]} are not among the {len(class_names)} classes of {root / 'train'}; "
            "rename them, or for Tiny ImageNet as published use the dataset name tiny_imagenet"
        )
    files, labels = [], []
    for label, class_name in enumerate(class_names):
        found = list_images(folder / class_name)
        files += found
        labels += [label] * len(found)
    if not files:
        raise FileNotFoundError(f"{folder}: no images in its class folders; {EXPECTED}")
    return Source(f"{root.name}-{split}", folder, files, tuple(class_names), partial(Records, files, labels))


def split_folder(root: Path, split: str) -> Path:
    for name in SPLIT_FOLDERS[split]:
        if (root / name).is_dir():
            return root / name
    raise FileNotFoundError(f"{root}: no folder {' or '.join(SPLIT_FOLDERS[split])}; {EXPECTED}")


def list_classes(folder: Path) -> list[str]:
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise FileNotFoundError(f"{folder}: no class folders; {EXPECTED}")
    return names


def list_images(folder: Path) -> list[Path]:
    """Image files under `folder`, sorted by path; a class that a split lacks gives none."""
    return sorted(
        Path(parent, name)
        for parent, _, names in os.walk(folder)
        for name in names
        if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")
    )
