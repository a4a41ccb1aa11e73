"""Check a data set on disk: counts, classes, splits, sizes, broken and repeated images."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lgfast.data.datasets import labels_path
from lgfast.data.errors import some
from lgfast.data.formats import image_suffixes, unread_suffixes
from lgfast.data.sources import flowers, tiny_imagenet
from lgfast.data.sources.image_folder import has_suffix, is_flat
from lgfast.data.sources.source import SPLITS
from lgfast.data.sources.table import SPLIT, read_table
from lgfast.data.statistics import combined
from lgfast.doctor.finding import Finding
from lgfast.doctor.survey import Survey, survey_split
from lgfast.spec.pixels import PixelFormat


class Official(NamedTuple):
    """The numbers of a published data set."""

    num_classes: int
    num_images: dict[str, int]
    size: tuple[int, int] | None  # (h, w) of all images; None where sizes vary
    is_balanced: bool  # whether every class has the same number of images, in both splits


OFFICIAL = {
    "digits": Official(10, {"train": 1197, "test": 600}, (8, 8), False),
    "cifar10": Official(10, {"train": 50_000, "test": 10_000}, (32, 32), True),
    "cifar100": Official(100, {"train": 50_000, "test": 10_000}, (32, 32), True),
    "flowers102": Official(102, {"train": 2_040, "test": 6_149}, None, False),
    "tiny_imagenet": Official(200, {"train": 100_000, "test": 10_000}, (64, 64), True),
    "chaoyang": Official(4, {"train": 4_021, "test": 2_139}, (512, 512), False),
}
UNEVEN, VERY_UNEVEN = 3, 10  # images in the largest class, as multiples of the smallest
DOWNLOAD_AGAIN = "download the official files again; a part is missing or this is another version"

# name -> (folders that it may lie in, a file that marks such a folder)
PLACES = {
    "cifar10": (("cifar-10-batches-py",), "batches.meta"),
    "cifar100": (("cifar-100-python",), "meta"),
    "flowers102": (flowers.FOLDERS, "setid.mat"),
    "tiny_imagenet": (tiny_imagenet.FOLDERS, "wnids.txt"),
    "chaoyang": (("chaoyang",), "train.json"),
}


def find_datasets(root: Path) -> list[str]:
    """Return the names of the data sets that seem to be in `root`, complete or not."""
    found = [
        name
        for name, (folders, marker) in PLACES.items()
        if any((root / folder).is_dir() for folder in folders) or (root / marker).is_file()
    ]
    return found or (["folder"] if has_class_folders(root) else [])


def has_class_folders(root: Path) -> bool:
    """Whether the root holds parts with class folders, or folders with pictures."""
    if not is_flat(root):
        return True
    pictures = image_suffixes(with_arrays=True) | unread_suffixes()
    return any(has_suffix(path, pictures) for path in root.glob("[!.]*/*"))


def inspect_dataset(
    name: str, root: Path, labels: str = "", label_separator: str = "", pixels: str = "rgb"
) -> Iterator[Finding]:
    """Run every check of a data set that needs no training.

    Args:
        pixels: "rgb" or "stored", as data.pixels has it.
        labels, label_separator: of the table with the images' labels, as in `load_dataset`; "": folders have them.
    """
    surveys = []
    for split in SPLITS:
        try:
            surveys.append(survey_split(name, root, split, labels, label_separator, pixels))
        except (OSError, ValueError) as error:
            yield Finding("error", f"{split}: {error}")
    if name == "folder" and surveys and has_no_parts(root, labels, label_separator):
        lacks = "no column split" if labels else "no train/ and test/"
        yield Finding("note", f"{lacks}: a fifth of each class is the test part, chosen by the files' names")
    yield from check_formats(surveys)
    for survey in surveys:
        yield from check_counts(survey, OFFICIAL.get(name))
        yield from check_kinds(survey)
        yield from check_classes(survey, OFFICIAL.get(name))
        yield from check_broken(survey)
        yield from check_sizes(survey, OFFICIAL.get(name))
        yield from check_orientation(survey)
        yield from check_depth(survey)
        yield from check_repeats(survey, is_published=name in OFFICIAL)
    if len(surveys) == len(SPLITS):
        train, test = surveys
        yield from check_overlap(train, test, is_published=name in OFFICIAL)


def has_no_parts(root: Path, labels: str, label_separator: str) -> bool:
    """Whether nothing says which images are for training and which for the test."""
    if labels:
        return SPLIT not in read_table(labels_path(root, labels), root, label_separator).columns
    return is_flat(root)


def check_counts(survey: Survey, official: Official | None) -> Iterator[Finding]:
    got, classes = len(survey.labels), len(survey.class_names)
    if official is None:
        yield Finding("ok", f"{survey.split}: {got} images of {classes} classes")
        return
    expected = official.num_images[survey.split]
    other = official.num_images["test" if survey.split == "train" else "train"]
    if got == expected:
        yield Finding("ok", f"{survey.split}: {got} images, as published")
    elif got == other:
        yield Finding(
            "error", f"{survey.split}: {got} images is the size of the other split; they are swapped", DOWNLOAD_AGAIN
        )
    else:
        yield Finding("error", f"{survey.split}: {got} images, published are {expected}", DOWNLOAD_AGAIN)
    if classes != official.num_classes:
        yield Finding(
            "error", f"{survey.split}: {classes} classes, published are {official.num_classes}", DOWNLOAD_AGAIN
        )


def check_classes(survey: Survey, official: Official | None) -> Iterator[Finding]:
    counts = survey.counts()
    empty = [name for name, count in zip(survey.class_names, counts, strict=True) if count == 0]
    if empty and survey.split == "train":
        fix = "add images of them, or remove these classes: they cannot be learnt"
        yield Finding("error", f"train: {len(empty)} classes have no image: {some(empty)}", fix)
    elif empty:
        fix = "move some images of them from train, or their accuracy stays unknown"
        yield Finding("warning", f"{survey.split}: {len(empty)} classes have no image: {some(empty)}", fix)
    low, high = int(counts.min()), int(counts.max())
    if official and official.is_balanced and low != high:
        text = f"{survey.split}: {low} to {high} images per class, published are equally many"
        yield Finding("error", text, DOWNLOAD_AGAIN)
    else:
        yield from check_balance(survey, is_published=official is not None)


def check_balance(survey: Survey, is_published: bool) -> Iterator[Finding]:
    counts = survey.counts()
    present = np.flatnonzero(counts)
    if len(present) == 0:  # images of several classes may have none
        return
    least, most = (int(present[index]) for index in (counts[present].argmin(), counts[present].argmax()))
    if counts[most] < UNEVEN * counts[least]:
        return
    extremes = " to ".join(f"{counts[label]} ({survey.class_names[label]})" for label in (least, most))
    text = f"{survey.split}: classes are uneven, {extremes} images each; top-1 favours the large ones"
    if counts[most] < VERY_UNEVEN * counts[least]:
        yield Finding("note", text)
    else:
        yield flaw(text, "add images to the small classes, and look at the accuracy of each class", is_published)


def check_kinds(survey: Survey) -> Iterator[Finding]:
    if survey.unread:
        what, _, fix = survey.unread.rpartition(": ")
        yield Finding("warning", f"{survey.split}: left out are {what}", fix)


def check_orientation(survey: Survey) -> Iterator[Finding]:
    advice = "--data.exif-orientation, as in the recipe photos, has them upright in training"
    yield from note(survey, [look.is_turned for look in survey.looks], "are turned by their EXIF tag", advice)


def check_depth(survey: Survey) -> Iterator[Finding]:
    advice = "--data.pixels stored keeps all in training, where images are of one kind"
    yield from note(survey, [look.is_deep for look in survey.looks], "have 16 bits, of which 8 are used", advice)


def note(survey: Survey, concerned: Sequence[bool], what: str, advice: str) -> Iterator[Finding]:
    """Count and name the images that something is to be said of, if there are any."""
    names = [name for name, is_one in zip(survey.image_names, concerned, strict=True) if is_one]
    if names:
        yield Finding("note", f"{survey.split}: {len(names)} of {len(concerned)} images {what}: {some(names)}", advice)


def check_broken(survey: Survey) -> Iterator[Finding]:
    broken = [look.error for look in survey.looks if look.error and not look.is_unreadable]
    if broken:
        text = f"{survey.split}: {len(broken)} images cannot be decoded: {some(broken)}"
        yield Finding("error", text, "replace these files, or leave them out with --data.skip-broken")
    unreadable = [look.error for look in survey.looks if look.is_unreadable]
    if unreadable:
        text = f"{survey.split}: {len(unreadable)} images cannot be read: {some(unreadable)}"
        yield Finding("error", text, "let this user read these files, or look after their disk")


def check_sizes(survey: Survey, official: Official | None) -> Iterator[Finding]:
    sizes = np.array([look.size for look in survey.looks if look.digest])
    if len(sizes) == 0:
        return
    (low_h, low_w), (high_h, high_w) = sizes.min(0).tolist(), sizes.max(0).tolist()
    one_size = (low_h, low_w) == (high_h, high_w)
    got = f"{low_h}x{low_w}" if one_size else f"{low_h} to {high_h} high and {low_w} to {high_w} wide"
    if official and official.size and not (one_size and (low_h, low_w) == official.size):
        expected = "x".join(map(str, official.size))
        yield Finding("error", f"{survey.split}: images are {got}, published are {expected}", DOWNLOAD_AGAIN)
    else:
        num_bytes = sum(look.size[0] * look.size[1] * look.format.num_bytes for look in survey.looks)
        yield Finding("ok", f"{survey.split}: images are {got}; {num_bytes / 1e6:.0f} MB when decoded")
        yield from describe_pixels(survey)


def describe_pixels(survey: Survey) -> Iterator[Finding]:
    """Say how the training images would be normalised; a run measures the same."""
    looks = [look for look in survey.looks if look.moments is not None]
    if survey.split == "train" and len({look.format for look in looks}) == 1:
        format = looks[0].format
        found = combined([look.moments for look in looks if look.moments is not None], format.value_range)
        yield Finding("ok", f"train: pixels are {format}: {found}")


def check_formats(surveys: Sequence[Survey]) -> Iterator[Finding]:
    """Find images of several formats, which no network takes."""
    named: dict[PixelFormat, list[str]] = {}
    for survey in surveys:
        for name, look in zip(survey.image_names, survey.looks, strict=True):
            if look.digest:
                named.setdefault(look.format, []).append(name)
    if len(named) > 1:
        kinds = ", ".join(f"{len(names)} are {format} ({some(names)})" for format, names in named.items())
        yield Finding(
            "error", f"images differ in their pixels: {kinds}", "convert or remove some, or use data.pixels=rgb"
        )


def check_repeats(survey: Survey, is_published: bool) -> Iterator[Finding]:
    """Find equal images within a split; two labels of one image contradict each other."""
    first_of: dict[bytes, int] = {}
    repeats: list[str] = []
    contradictions: list[str] = []
    for index, look in enumerate(survey.looks):
        first = first_of.setdefault(look.digest, index) if look.digest else index
        if first != index:
            pair = f"{survey.image_names[index]} = {survey.image_names[first]}"
            (repeats if survey.have_one_label(first, index) else contradictions).append(pair)
    if repeats:
        yield Finding("note", f"{survey.split}: {len(repeats)} images appear twice: {some(repeats)}")
    if contradictions:
        text = f"{survey.split}: {len(contradictions)} images appear under two labels: {some(contradictions)}"
        yield flaw(text, "delete the copies with the wrong label", is_published)


def check_overlap(train: Survey, test: Survey, is_published: bool) -> Iterator[Finding]:
    """Find test images that are also training images; they make the accuracy look better than it is."""
    index_of = {look.digest: index for index, look in enumerate(train.looks) if look.digest}
    shared = [
        f"{test.image_names[index]} = {train.image_names[index_of[look.digest]]}"
        for index, look in enumerate(test.looks)
        if look.digest in index_of
    ]
    if shared:
        percent = 100 * len(shared) / len(test.looks)
        text = f"{len(shared)} test images ({percent:.2f} %) are also training images: {some(shared)}"
        yield flaw(text, "remove them from train, or report the share beside the accuracy", is_published)
    else:
        yield Finding("ok", "no test image is also a training image")


def flaw(text: str, fix: str, is_published: bool) -> Finding:
    """Make a note of a flaw in a published data set, which keeps it for comparable results; warn of one in the user's
    own."""
    return Finding("note", text) if is_published else Finding("warning", text, fix)
