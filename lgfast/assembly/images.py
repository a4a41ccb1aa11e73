"""Load the images of a run: to train on, to select the best epoch on, and to test on."""

from __future__ import annotations

import csv
import dataclasses
import math
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lgfast import _extension
from lgfast.config import Config, replace
from lgfast.data import load_dataset, load_files, split_holdout
from lgfast.data.dali_loader import require_dali
from lgfast.data.datasets import labels_path
from lgfast.data.decode import Decoding
from lgfast.data.errors import some
from lgfast.data.file_set import FileSet
from lgfast.data.folds import check_groups_apart, check_some_share, fold_numbers, folds_of, group_names, split_fold
from lgfast.data.image_set import ImageSet
from lgfast.data.sources.image_folder import is_flat
from lgfast.data.sources.table import SPLIT, LabelTable, read_table
from lgfast.data.statistics import PixelStatistics, measure
from lgfast.ops.augment import largest_source_side
from lgfast.records.files import atomic_path
from lgfast.runtime.paths import user_path
from lgfast.spec.augment import AugmentSpec

FEWEST_EPOCHS = 20  # the least for `epochs: 0`, where the number of images decides
HOLDOUT_SEED = 0  # runs on the same images have the same split, whatever their seeds
SplitImages = ImageSet | FileSet  # decoded, or files for the dali loader


@dataclass(frozen=True)
class DataSplits:
    """Images to train on, to select the best epoch on, and to test on."""

    train: SplitImages
    select: SplitImages
    test: SplitImages


def load_images(config: Config, split: str) -> SplitImages:
    """Load one split of the data set, cut to the configured number of images; decode nothing for the dali loader."""
    return limited(config, split, load_whole(config, split))


def limited(config: Config, split: str, images: SplitImages) -> SplitImages:
    limit = config.data.train_limit if split == "train" else config.data.test_limit
    return images.limit(limit) if 0 < limit < len(images) else images


def load_whole(config: Config, split: str) -> SplitImages:
    """Load one split of the data set with all its images."""
    if has_parts(config):
        return read_split(config, split, config.data.test_fraction)
    images = read_split(config, "train", 0.0)
    named = groups(config, images)
    num_folds = config.data.folds or folds_of(config.data.test_fraction, images.strata, named)
    try:
        numbers = fold_numbers(images.strata, num_folds, named)
    except ValueError as error:
        raise ValueError(f"data.{'folds' if config.data.folds else 'group'}: {error}") from None
    name = images.name.removesuffix("-train")
    part = split_fold(images, numbers, config.data.fold)[split == "test"]
    return dataclasses.replace(part, name=f"{name}-{split}")


def has_parts(config: Config) -> bool:
    """Whether training and test images are read separately; else all are read, and split into folds here."""
    data = config.data
    if data.folds:
        return False
    if not data.group or data.dataset != "folder":
        return True
    table = label_table(config)
    return not is_flat(user_path(data.root)) if table is None else SPLIT in table.columns


def label_table(config: Config) -> LabelTable | None:
    """Return the run's table of labels; None where class folders give the labels."""
    root = user_path(config.data.root)
    data = config.data
    return read_table(labels_path(root, data.labels), root, data.label_separator) if data.labels else None


def groups(config: Config, images: SplitImages) -> list[str] | None:
    """Return the group of each image; None where images have no groups."""
    data = config.data
    if not data.group:
        return None
    table = label_table(config)
    if table is not None and data.group in table.columns:
        names = table.group_of(data.group)
        return [names[str(path)] or str(path) for path in images.paths or ()]
    return group_names(images, data.group, str(user_path(data.root)))


def read_split(config: Config, split: str, test_fraction: float) -> SplitImages:
    data = config.data
    load = load_files if data.loader == "dali" else partial(load_dataset, label_separator=data.label_separator)
    return load(
        data.dataset,
        data.root,
        split,
        download=data.download,
        skip_broken=data.skip_broken,
        decoding=decoding(config),
        test_fraction=test_fraction,
        labels=data.labels,
    )


def decoding(config: Config) -> Decoding:
    """Return how the run's image files become pixels."""
    data, spec = config.data, config.augment
    max_side = 0
    if _extension.has_native() and data.is_rgb:  # PyTorch makes the views of other images, of any size
        max_side = min(largest_source_side(spec), largest_source_side(spec.for_evaluation()))
    return Decoding(data.exif_orientation, stored_side(config), data.max_pixels, max_side, data.pixels)


def stored_side(config: Config) -> int:
    """Return data.stored_side; for `none`, the side at which the smallest crop has as many pixels as its view."""
    spec = config.augment
    if config.data.stored_side is not None:
        return config.data.stored_side
    smallest = 1.0 if spec.weak else spec.crop_scale[0] * min(spec.crop_ratio[0], 1 / spec.crop_ratio[1], 1.0)
    return math.ceil(spec.image_size / math.sqrt(smallest))


def load_splits(config: Config) -> DataSplits:
    if config.data.loader == "dali":
        require_dali()
    train, test = load_whole(config, "train"), load_whole(config, "test")
    check_classes(config, train, test)
    check_pixels(train, test)
    check_crops(config, train)
    train_groups, test_groups = groups(config, train), groups(config, test)
    check_groups_apart(train, train_groups, test, test_groups)
    if config.data.group:
        check_some_share([*(train_groups or ()), *(test_groups or ())], config.data.group)
    train, test = limited(config, "train", train), limited(config, "test", test)
    select = test
    if config.eval.protocol == "holdout":
        train, select = hold_out(config, train)
    if empty := train.empty_classes():
        warnings.warn(f"{train.name}: {len(empty)} classes without a training image: {some(empty)}", stacklevel=2)
    return DataSplits(train, select, test)


def hold_out(config: Config, train: SplitImages) -> tuple[SplitImages, SplitImages]:
    """Split images into those to train on and those that choose the epoch; groups stay together."""
    fraction, named = config.eval.holdout_fraction, groups(config, train)
    try:
        if named is None:
            return split_holdout(train, fraction, HOLDOUT_SEED)
        return split_fold(train, fold_numbers(train.strata, folds_of(fraction, train.strata, named), named), 0)
    except ValueError as error:
        raise ValueError(f"eval.holdout_fraction: {error}") from None


def check_classes(config: Config, train: SplitImages, test: SplitImages) -> None:
    """Raise a ValueError for parts that do not fit together; warn of a class without a test image."""
    if train.class_names != test.class_names:  # a label would mean another class in the test than in training
        odd = sorted(set(train.class_names) ^ set(test.class_names))
        raise ValueError(
            f"data.root: {train.name} and {test.name} were read with other classes ({some(odd)}); start again when "
            f"nothing changes in {config.data.root} any more"
        )
    if config.data.dataset != "folder":  # published data sets stay as they are
        return
    data = config.data
    key, kind, source = ("labels", "label", data.labels) if data.labels else ("root", "class folder", data.root)
    if train.num_classes < 2:
        raise ValueError(
            f"data.{key}: {source} has one {kind} ({train.class_names[0]}), and nothing to tell apart"
            + ("" if data.labels else "; name the folder that holds the class folders")
        )
    if empty := train.empty_classes():
        raise ValueError(
            f"data.{key}: {len(empty)} {kind}s of {source} have no image to train on ({some(empty)}); add images of a "
            f"kind that is read, or remove the {kind}s"
        )
    if empty := test.empty_classes():
        warnings.warn(f"{test.name}: {len(empty)} classes without a test image: {some(empty)}", stacklevel=2)


def check_pixels(train: SplitImages, test: SplitImages) -> None:
    """Raise a ValueError for parts whose pixels differ in format."""
    if isinstance(train, ImageSet) and isinstance(test, ImageSet) and train.format != test.format:
        raise ValueError(
            f"data.pixels: {train.where(0)} is {train.format}, and {test.where(0)} is {test.format}; a network takes "
            "images of one format: convert one part, or use data.pixels=rgb, which makes 8-bit RGB of pictures"
        )


def check_crops(config: Config, train: SplitImages) -> None:
    """Raise a ValueError where an image has no crop of the requested ratios: the largest centred crop, which is used
    where no random one fits, is then empty."""
    low, high = config.augment.crop_ratio
    if config.augment.weak or not isinstance(train, ImageSet):
        return
    height, width = train.sizes.double().unbind(1)
    for ratio, is_empty in ((low, (width / low).round() < 1), (high, (height * high).round() < 1)):
        if is_empty.any():
            sides = "x".join(map(str, train.sizes[int(is_empty.nonzero()[0])].tolist()))
            raise ValueError(f"augment.crop_ratio: an image of {sides} pixels has no crop of width / height {ratio:g}")


def settle(config: Config, splits: DataSplits | None = None) -> Config:
    """Return the configuration with what the images decide.

    For `epochs: 0` that is the number of epochs. For `data.pixels: stored` it is the format of pixels, their mean and
    deviation.
    """
    if config.epochs > 0 and config.data.pixels != "stored":
        return config
    splits = splits or load_splits(config)
    return settle_epochs(settle_pixels(config, splits.train), splits)


def settle_pixels(config: Config, images: SplitImages) -> Config:
    """Set the format for `data.pixels: stored`, and measure the training images unless `augment.mean` is set."""
    if config.data.pixels != "stored" or not isinstance(images, ImageSet):
        return config
    spec, usual, channels = config.augment, AugmentSpec(), images.format.channels
    chosen = spec.value_range if spec.value_range != usual.value_range else None
    found = measure(images, chosen)
    if (spec.mean, spec.std) != (usual.mean, usual.std):
        if spec.channels != channels:
            raise ValueError(
                f"augment.mean: expected {channels} values, as the images are {images.format}, got {spec.channels}"
            )
        found = found._replace(mean=spec.mean, std=spec.std)
    augment = dataclasses.replace(spec, **found._asdict())
    data = dataclasses.replace(config.data, pixels=str(images.format))
    return dataclasses.replace(config, data=data, augment=augment)


def settle_epochs(config: Config, splits: DataSplits) -> Config:
    if config.epochs > 0:
        return config
    num_images = len(splits.train)
    steps_per_epoch = max(1, num_images // config.data.batch_size)
    return replace(config, {"epochs": max(FEWEST_EPOCHS, math.ceil(config.min_steps / steps_per_epoch))})


def record_parts(run_dir: Path, splits: DataSplits) -> None:
    """Write images.csv, which lists the image files of each part of a run, where the files are known."""
    parts = {"train": splits.train, "test": splits.test}
    if splits.select is not splits.test:
        parts["validation"] = splits.select
    with (
        atomic_path(run_dir / "images.csv") as path,
        path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("part", "class", "file"))
        for part, images in parts.items():
            for index, image_path in enumerate(images.paths or ()):
                rows.writerow((part, images.named(index), image_path))


def describe_pixels(config: Config) -> str:
    """Say in a line what the pixels are and how they are normalised; "" for 8-bit RGB."""
    spec = config.augment
    about = PixelStatistics(spec.value_range, spec.mean, spec.std)
    return "" if config.data.is_rgb else f"\npixels {config.data.pixels}: {about}"


def describe_splits(config: Config, splits: DataSplits) -> str:
    """Say in a line how many images train, test and select; name a recipe's limit, made for its own data, where it
    cuts."""
    data, test = config.data, splits.test
    choosing = "they" if splits.select is test else f"{len(splits.select)}"
    num_read = len(splits.train) + (0 if splits.select is test else len(splits.select))
    used = {"train": num_read, "test": len(test)}
    limits = [
        f"data.{split}_limit={count}" for split, count in used.items() if count == getattr(data, f"{split}_limit")
    ]
    return (
        f"{data.dataset}: {len(splits.train)} images of {splits.train.num_classes} classes to train on, {len(test)} to "
        f"test, {choosing} choose the epoch" + (f" (limited by {' and '.join(limits)}; 0: all)" if limits else "")
    )
