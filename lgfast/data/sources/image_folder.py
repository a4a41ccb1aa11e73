"""Read class folders: <root>/train/<class>/*.jpg and <root>/test/<class>/*.jpg (or val/); or <root>/<class>/*.jpg.

A tree without parts is split here: the names of the files choose a share of every class as the test part.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from lgfast.data.errors import some
from lgfast.data.formats import image_suffixes, unread_suffixes
from lgfast.data.read import UnreadableError
from lgfast.data.sources.source import Source, describe_unread, file_source

SPLIT_FOLDERS = {"train": ("train",), "test": ("test", "val")}
TEST_FRACTION = 0.2
EXPECTED = (
    "expected <root>/train/<class>/<image> and <root>/test/<class>/<image> (or val/ in place of test/), "
    "or <root>/<class>/<image>"
)


def folder_source(root: Path, split: str, test_fraction: float = TEST_FRACTION, with_arrays: bool = False) -> Source:
    """Find a split of class folders. The classes are the sorted folder names under train/, or of a test part alone.

    Args:
        test_fraction: the share of every class that is the test part of a tree without parts; 0: all images train.
        with_arrays: count .npy files as images.
    """
    is_whole = is_flat(root)
    folder = root if is_whole else split_folder(root, split)
    is_alone = is_whole or (split == "test" and not (root / "train").is_dir())
    class_names = list_classes(folder if is_alone else root / "train")
    unknown = sorted(set(list_classes(folder)) - set(class_names))
    if unknown:
        raise ValueError(
            f"{folder}: class folders {unknown[:5]} are not among the {len(class_names)} classes of {root / 'train'}; "
            "rename them, or for Tiny ImageNet as published use the dataset name tiny_imagenet"
        )
    files, labels, unread = [], [], []
    kinds, other_kinds = image_suffixes(with_arrays), unread_suffixes()
    for label, class_name in enumerate(class_names):
        found = list_files(folder / class_name)
        images = [path for path in found if has_suffix(path, kinds)]
        if is_whole:
            images = part_of(images, root, split, test_fraction)
        unread += [path for path in found if has_suffix(path, other_kinds)]
        files += images
        labels += [label] * len(images)
    if not files:
        arrays = "" if with_arrays else ", or .npy arrays with data.pixels=stored"
        raise FileNotFoundError(
            f"{folder}: no images in its class folders; {describe_unread(unread) or EXPECTED + arrays}"
        )
    name = root.name if is_whole and test_fraction == 0 else f"{root.name}-{split}"
    return file_source(name, folder, files, labels, tuple(class_names), unread=unread)


def is_flat(root: Path) -> bool:
    """Whether the class folders lie in the root itself."""
    return not any((root / name).is_dir() for names in SPLIT_FOLDERS.values() for name in names)


def part_of(images: Sequence[Path], root: Path, split: str, test_fraction: float) -> list[Path]:
    """Return the images of one class that belong to a part; each part gets at least one where there are two images.

    The hash of a file's path below the root decides, so that other roots, seeds and orders change nothing, and added
    images move few.
    """

    def path_hash(path: Path) -> bytes:
        return hashlib.blake2b(os.fsencode(os.path.relpath(path, root))).digest()

    if test_fraction == 0:
        return list(images) if split == "train" else []
    num_test = min(max(1, round(len(images) * test_fraction)), len(images) - 1)
    test = set(sorted(images, key=path_hash)[: max(0, num_test)])
    return [path for path in images if (path in test) == (split == "test")]


def split_folder(root: Path, split: str) -> Path:
    for name in SPLIT_FOLDERS[split]:
        if (root / name).is_dir():
            return root / name
    parts = {name for names in SPLIT_FOLDERS.values() for name in names}
    found = list_classes(root)
    others = [name for name in found if name not in parts]
    part = next((name for name in found if name in parts), "")
    clash = f"; is {part} a class, as {some(others)}? then rename it, a part has its name" if part and others else ""
    raise FileNotFoundError(f"{root}: no folder {' or '.join(SPLIT_FOLDERS[split])}; {EXPECTED}{clash}")


def list_classes(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; {EXPECTED}")
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise FileNotFoundError(f"{folder}: no class folders; {EXPECTED}")
    return names


def list_images(folder: Path, with_arrays: bool = False) -> list[Path]:
    """List the image files under `folder`, sorted by path; none for a class that a split lacks."""
    kinds = image_suffixes(with_arrays)
    return [path for path in list_files(folder) if has_suffix(path, kinds)]


def has_suffix(path: Path, suffixes: set[str]) -> bool:
    return path.suffix.lower() in suffixes


def list_files(folder: Path) -> list[Path]:
    """List every file under `folder`, sorted by path, without hidden files and folders; none where there is no folder.

    Links to folders are followed. A folder that several ways lead to is read once, on a way without a link if there
    is one, so that a link to a folder above ends.
    Raises:
        UnreadableError: a folder cannot be listed, so that images might be missing.
    """
    found, seen = [], set()
    waiting = [folder] if folder.is_dir() else []
    for top in waiting:  # it grows: links are followed after all folders that need none
        for parent, folders, names in os.walk(top, onerror=refuse):
            status = os.stat(parent)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            waiting += [Path(parent, name) for name in folders if os.path.islink(os.path.join(parent, name))]
            found += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(found)


def refuse(error: OSError) -> None:
    raise UnreadableError(error.filename, error.strerror) from error
