"""A dataset split on disk, before it is decoded: the one thing that a new dataset has to provide."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lgfast.data.errors import some
from lgfast.data.formats import HEIF_SUFFIXES

SPLITS = ("train", "test")


class Records(NamedTuple):
    """The images of a split, decoded (uint8 [h, w, 3]) or still as files, with their labels."""

    images: Sequence[Path] | np.ndarray
    labels: Sequence[int]


@dataclass(frozen=True)
class Source:
    """One split of a data set in a folder.

    A decoded copy is stale where `files` have changed, or `class_names`: labels are indices into these, and a test
    part's come from the training part. `read` is called only where there is no good copy.
    """

    name: str
    folder: Path
    files: Sequence[Path]
    class_names: tuple[str, ...]
    read: Callable[[], Records]
    images: Sequence[Path] = ()  # those of `files` that the records name, in their order; (): records are decoded
    unread: Sequence[Path] = ()  # pictures beside the images, of kinds that are not read
    # float32 [len(images), K] of 0 and 1, where an image may have several classes; the records' labels are 0 then
    label_sets: np.ndarray | None = None


def file_source(
    name: str,
    folder: Path,
    images: Sequence[Path],
    labels: Sequence[int],
    class_names: tuple[str, ...],
    lists: Sequence[Path] = (),
    unread: Sequence[Path] = (),
    label_sets: np.ndarray | None = None,
) -> Source:
    """A split of image files.

    Args:
        lists: files that say which images there are, or their labels.
        label_sets: as Source has them.
    """
    read = partial(Records, images, labels)
    return Source(name, folder, [*lists, *images], class_names, read, images, unread, label_sets)


def describe_unread(unread: Sequence[Path]) -> str:
    """A message about files of kinds that are not read, with the way on; "" where there are none."""
    if not unread:
        return ""
    suffixes = sorted({path.suffix.lower() for path in unread})
    is_heif = set(suffixes) <= HEIF_SUFFIXES
    fix = "pip install pillow-heif, and they are" if is_heif else "convert them, e.g. to PNG"
    return f"{len(unread)} pictures of kinds that are not read ({', '.join(suffixes)}; {some(unread)}): {fix}"


def locate(root: Path, names: Sequence[str], marker: str) -> Path | None:
    """The first of root/<name>, and then root itself, that holds `marker`."""
    folders = (*(root / name for name in names), root)
    return next((folder for folder in folders if (folder / marker).exists()), None)


def find_folder(root: Path, names: Sequence[str], marker: str, help_text: str) -> Path:
    """`locate`; where it finds nothing, raise an error that states the expected layout."""
    folder = locate(root, names, marker)
    if folder is None:
        looked_in = ", ".join(str(root / name) for name in names)
        raise FileNotFoundError(f"no {marker} in {looked_in}; {help_text}")
    return folder


def require_files(files: Sequence[Path], help_text: str) -> None:
    """Raise a FileNotFoundError that names the missing files."""
    missing = [path for path in files if not path.is_file()]
    if missing:
        names = ", ".join(map(str, missing[:3])) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise FileNotFoundError(f"missing {names}; {help_text}")


def check_labels(labels: Sequence[int], num_classes: int, where: Path | str) -> None:
    """Raise a ValueError that names the first label that is no whole number in [0, num_classes)."""
    for index, label in enumerate(labels):
        if not isinstance(label, int | np.integer) or isinstance(label, bool):
            raise ValueError(f"{where}: labels must be whole numbers, got {label!r:.60} for image {index}")
        if not 0 <= label < num_classes:
            raise ValueError(f"{where}: labels must lie in [0, {num_classes}), got {label} for image {index}")
