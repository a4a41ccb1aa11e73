"""Load, use, evaluate and export a trained network from Python."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lgfast.api.process import process_kept
from lgfast.api.training import Run
from lgfast.assembly.device import resolve_device
from lgfast.assembly.images import decoding
from lgfast.data.decode import as_stored, decode_image, exif_orientation, to_rgb, upright
from lgfast.data.image_set import format_of
from lgfast.evaluate import evaluate_checkpoint
from lgfast.export import SUFFIXES
from lgfast.export import export as write_export
from lgfast.inference.classifier import Classifier, load_classifier
from lgfast.predict import Prediction, named
from lgfast.runtime.paths import user_path
from lgfast.spec.pixels import RGB, parse_format

Source = str | os.PathLike[str]


def load(source: Source | Run, device: str = "auto") -> Classifier:
    """Load the network of a run (its best epoch), a weights file, or a file that `export` wrote.

    Args:
        source: the run, its folder, or the file.
        device: "auto" (CUDA if there is a GPU), "cuda", "cuda:1" or "cpu".
    Raises:
        CheckpointError: the file is missing, damaged, or not written by lgfast.

    >>> import lgfast
    >>> lgfast.load("runs/short").class_names[:3]
    ('0', '1', '2')
    """
    with process_kept():
        return load_classifier(user_path(os.fspath(source)), resolve_device(device))


def predict(
    model: Classifier | Source | Run,
    images: Any,
    *,
    top: int = 1,
    flip: bool = False,
    batch_size: int = 100,
) -> list[Prediction]:
    """Return the likeliest classes of pictures, in the pictures' order.

    Args:
        model: from `load`, or what `load` takes.
        images: one picture or a sequence of them: a path, a Pillow image, or an array [h, w, channels] each, uint8 and
            3 channels unless the run has data.pixels=stored.
        top: the number of classes for each picture, the likeliest first; all of them where a picture may have several
            (`Prediction.classes` then chooses).
        flip: average over each picture and its mirror image.
        batch_size: the number of pictures computed at a time.
    Raises:
        ValueError: a picture cannot be decoded or is no picture; the message names it.

    >>> import lgfast
    >>> picture = np.zeros((16, 16, 3), np.uint8)
    >>> (found,) = lgfast.predict("runs/short", picture, top=2)
    >>> found.label in "0123456789", len(found.top)
    (True, 2)
    """
    if top < 1:
        raise ValueError(f"top: expected 1 or more, got {top}")
    classifier = model if isinstance(model, Classifier) else load(model)
    pictures = list(images) if _is_sequence(images) else [images]
    arrays = [_pixels(picture, number, classifier) for number, picture in enumerate(pictures)]
    with process_kept():
        found = classifier.probabilities(arrays, flip, batch_size)
    paths = [os.fspath(picture) if isinstance(picture, (str, os.PathLike)) else "" for picture in pictures]
    return named(paths, found, classifier.class_names, found.shape[1] if classifier.is_multi_label else top)


def _is_sequence(images: Any) -> bool:
    is_one = isinstance(images, (str, os.PathLike, Image.Image)) or getattr(images, "ndim", 4) < 4
    return not is_one


def _pixels(picture: Any, number: int, classifier: Classifier) -> np.ndarray:
    """Return the picture as the run has its images: uint8 [h, w, 3], or the format that it keeps."""
    data = classifier.config.data
    if isinstance(picture, (str, os.PathLike)):
        return decode_image(user_path(os.fspath(picture)), decoding(classifier.config))
    if isinstance(picture, Image.Image):
        pixels = to_rgb(picture) if data.is_rgb else as_stored(picture)
        pixels = upright(pixels, exif_orientation(picture)) if data.exif_orientation else pixels
    else:
        pixels = np.asarray(picture)
    expected = RGB if data.is_rgb else parse_format(data.pixels)
    if pixels.ndim != 3 or 0 in pixels.shape or format_of(pixels) != expected:
        assert expected is not None  # a run has read its images
        raise ValueError(
            f"images[{number}]: expected a path, a Pillow image or a {expected.dtype} array [h, w, "
            f"{expected.channels}], got {type(picture).__name__} of {pixels.dtype} {list(pixels.shape)}"
        )
    return pixels


def evaluate(
    source: Source | Run,
    *,
    split: str = "test",
    dataset: str | None = None,
    root: str | None = None,
    device: str = "auto",
) -> dict[str, float]:
    """Compute top-1, top-5, balanced accuracy and macro-F1 (percent) and mean cross entropy; count the images.

    Arguments and errors are those of `lgfast.evaluate.evaluate_checkpoint`.

    >>> import lgfast
    >>> scores = lgfast.evaluate("runs/short")
    >>> scores["images"], 0 <= scores["top1"] <= 100
    (40, True)
    """
    with process_kept():
        return evaluate_checkpoint(os.fspath(source), split=split, dataset=dataset, root=root, device=device)


def export(source: Source | Run, kind: str = "onnx", out: Source | None = None) -> Path:
    """Write a network for other programs, and return the path of the file or folder.

    Args:
        kind: "onnx", "torch" (a torch.export program), "safetensors", or "hf" (a folder for the Hugging Face hub).
        out: the path to write; None: beside the network's own files.

    >>> import lgfast
    >>> lgfast.export("runs/short", "safetensors").as_posix()
    'runs/short/model.safetensors'
    """
    if kind not in SUFFIXES:
        raise ValueError(f"kind: expected one of {', '.join(SUFFIXES)}, got {kind!r}")
    path = user_path(os.fspath(source))
    folder = path if path.is_dir() else path.parent
    target = folder / f"model{SUFFIXES[kind]}" if out is None else user_path(os.fspath(out))
    with process_kept():
        write_export(path, kind, target)
    return target
