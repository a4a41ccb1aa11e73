"""Tiny ImageNet (http://cs231n.stanford.edu/tiny-imagenet-200.zip), both layouts of its validation part.

As published, val/ is flat: val/images/*.JPEG and val/val_annotations.txt. Many copies are sorted into val/<wnid>/
instead. Both give the same images in the same order. `test` is the labelled validation part, as in every paper.
"""

import re
from pathlib import Path

from lgfast.data.read import read_text
from lgfast.data.sources.image_folder import list_images
from lgfast.data.sources.source import Source, file_source, find_folder, require_files

FOLDERS = ("tiny-imagenet-200", "tiny-imagenet")
HELP = (
    "unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip; expected train/<wnid>/images/*.JPEG, val/images/*.JPEG "
    "and val/val_annotations.txt (or val/<wnid>/*.JPEG)"
)
WNID = re.compile(r"n\d+")


def tiny_imagenet_source(root: Path, split: str) -> Source:
    """The split of Tiny ImageNet in root/tiny-imagenet-200; classes are the sorted wnids under train/."""
    folder = find_folder(root, FOLDERS, "train", HELP)
    class_names = wnid_folders(folder / "train")
    if not class_names:
        raise FileNotFoundError(f"{folder / 'train'}: no class folders named n01443537, ...; {HELP}")
    extra = []
    if split == "train":
        samples = sorted_samples(folder / "train", class_names)
    elif wnid_folders(folder / "val"):
        samples = sorted_samples(folder / "val", class_names)
    else:
        extra = [folder / "val" / "val_annotations.txt"]
        samples = annotated_samples(folder / "val", class_names)
    images = [path for path, _ in samples]
    if not images:
        raise FileNotFoundError(f"{folder}: no images in the {split} part; {HELP}")
    labels = [label for _, label in samples]
    return file_source(f"tiny_imagenet-{split}", folder, images, labels, class_names, extra)


def wnid_folders(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        return ()
    return tuple(sorted(path.name for path in folder.iterdir() if WNID.fullmatch(path.name) and path.is_dir()))


def sorted_samples(folder: Path, class_names: tuple[str, ...]) -> list[tuple[Path, int]]:
    """(image, label) of a part that is sorted into class folders, by class and file name."""
    unknown = sorted(set(wnid_folders(folder)) - set(class_names))
    if unknown:
        raise ValueError(f"{folder}: classes {', '.join(unknown[:5])} have no folder under train/; {HELP}")
    return [
        (path, label)
        for label, name in enumerate(class_names)
        for path in sorted(list_images(folder / name), key=lambda path: path.name)
    ]


def annotated_samples(folder: Path, class_names: tuple[str, ...]) -> list[tuple[Path, int]]:
    """(image, label) of the flat validation part, by class and file name."""
    annotations = folder / "val_annotations.txt"
    require_files([annotations], HELP)
    label_of = {name: label for label, name in enumerate(class_names)}
    samples = []
    for number, line in enumerate(read_text(annotations).splitlines(), start=1):
        fields = line.split()
        if len(fields) < 2:
            raise ValueError(f"{annotations}, line {number}: expected a file name and a wnid, got {line!r}; {HELP}")
        file_name, wnid = fields[:2]
        if wnid not in label_of:
            raise ValueError(f"{annotations}, line {number}: class {wnid} has no folder under train/; {HELP}")
        samples.append((folder / "images" / file_name, label_of[wnid]))
    samples.sort(key=lambda sample: (sample[1], sample[0].name))
    require_files([path for path, _ in samples], HELP)
    return samples
