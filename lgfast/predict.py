"""Command line: `python -m lgfast.predict RUN PATHS... [--out predictions.csv]`."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from lgfast.assembly.device import resolve_device
from lgfast.assembly.images import decoding
from lgfast.data.decode import show_progress
from lgfast.inference.classifier import Classifier, load_classifier
from lgfast.inference.pictures import CHUNK, decode_pictures, find_pictures
from lgfast.records.files import atomic_path
from lgfast.runtime.command_line import command_line
from lgfast.runtime.door import open_door
from lgfast.runtime.paths import user_path
from lgfast.runtime.printable import printable

DESCRIPTION = "Name the classes of pictures, with their probabilities."
FORMATS = (".csv", ".jsonl")


class Prediction(NamedTuple):
    """The path of a picture and its likeliest classes with their probabilities, the likeliest first."""

    path: str
    top: tuple[tuple[str, float], ...]

    @property
    def label(self) -> str:
        """The likeliest class."""
        return self.top[0][0]

    @property
    def probability(self) -> float:
        """The probability of the likeliest class."""
        return self.top[0][1]

    def classes(self, threshold: float = 0.5) -> list[str]:
        """Those of `top` that are at least so likely, where a picture may have several."""
        return [name for name, share in self.top if share >= threshold]


def predict(
    classifier: Classifier, paths: Sequence[Path], broken: list[str], top: int = 1, flip: bool = False
) -> Iterator[Prediction]:
    """Yield predictions in the order of the paths, without the pictures that cannot be decoded.

    Args:
        classifier: from `load_classifier`.
        paths: picture files.
        broken: receives a line for each picture that was left out, with the reason.
        top: the number of classes for each picture.
        flip: average over each picture and its mirror image.
    """
    for kept, images in decode_pictures(paths, decoding(classifier.config), broken):
        found = classifier.probabilities(images, flip, CHUNK)
        yield from named([str(path) for path in kept], found, classifier.class_names, top)


def named(paths: Sequence[str], probabilities: Tensor, class_names: Sequence[str], top: int) -> list[Prediction]:
    """Make predictions from probabilities [n, K] of n pictures, with `top` classes or as many as there are."""
    values, classes = probabilities.topk(min(top, len(class_names)), dim=1)
    rows = zip(paths, values.tolist(), classes.tolist(), strict=True)
    return [
        Prediction(path, tuple(zip((class_names[label] for label in labels), row, strict=True)))
        for path, row, labels in rows
    ]


class Rows(Protocol):
    """What takes rows of text: a file, or a terminal."""

    def write(self, row: str, /) -> Any: ...


class Terminal:
    """Standard output for rows whose names of files and classes may not steer it."""

    def write(self, row: str, /) -> None:
        """Print a row, which ends with a line's end."""
        sys.stdout.write(printable(row.removesuffix("\n")) + "\n")


def write_csv(predictions: Iterator[Prediction], file: Rows, top: int) -> None:
    """Write a row for each picture: path, class, probability, then class_2, probability_2, ..."""
    writer = csv.writer(file, lineterminator="\n")
    suffixes = ["", *(f"_{rank}" for rank in range(2, top + 1))]
    writer.writerow(["path", *(f"{name}{suffix}" for suffix in suffixes for name in ("class", "probability"))])
    for path, found in predictions:
        writer.writerow([path, *(value for name, share in found for value in (name, f"{share:.6f}"))])


def write_jsonl(predictions: Iterator[Prediction], file: Rows, top: int) -> None:
    """Write an object in each line: path, class, probability, and the further classes under `top`."""
    for path, found in predictions:
        row: dict[str, Any] = {"path": path, "class": found[0][0], "probability": found[0][1]}
        row["top"] = [{"class": name, "probability": share} for name, share in found]
        file.write(json.dumps(row) + "\n")


def write_sets_csv(predictions: Iterator[Prediction], file: Rows, class_names: Sequence[str], least: float) -> None:
    """A row a picture that may have several classes: path, those at least so likely, and the probability of each."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["path", "classes", *class_names])
    for found in predictions:
        shares = dict(found.top)
        chosen = ";".join(name for name in class_names if shares[name] >= least)
        writer.writerow([found.path, chosen, *(f"{shares[name]:.6f}" for name in class_names)])


def write_sets_jsonl(predictions: Iterator[Prediction], file: Rows, class_names: Sequence[str], least: float) -> None:
    """The same as an object a line: path, classes and probabilities."""
    for found in predictions:
        row = {"path": found.path, "classes": found.classes(least), "probabilities": dict(found.top)}
        file.write(json.dumps(row) + "\n")


def command_parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m lgfast.predict", description=DESCRIPTION)
    options.add_argument(
        "model", metavar="RUN", help="run folder, folder of folds, .safetensors, or a .pt2 or .onnx file of export"
    )
    options.add_argument("paths", metavar="PATHS", nargs="+", help="pictures, folders of them, or @FILE with a list")
    options.add_argument("--out", help="file to write, .csv or .jsonl (default: CSV on the terminal)")
    options.add_argument("--top", type=int, default=1, metavar="K", help="classes a picture (default 1)")
    options.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help="where a picture may have several classes: how likely (0.5)",
    )
    options.add_argument("--tta", choices=("none", "flip"), default="none", help="flip: average with the mirror image")
    options.add_argument("--device", default="auto")
    return options


def writer_of(
    classifier: Classifier, suffix: str, top: int, threshold: float | None
) -> Callable[[Iterator[Prediction], Rows], None]:
    """What writes predictions of this network into a file of this kind."""
    if not classifier.is_multi_label:
        return partial(write_csv if suffix == ".csv" else write_jsonl, top=top)
    least = 0.5 if threshold is None else threshold
    write = write_sets_csv if suffix == ".csv" else write_sets_jsonl
    return partial(write, class_names=classifier.class_names, least=least)


@command_line
def main(argv: Sequence[str] | None = None) -> int:
    """Return 0 where every picture was read, 1 where some were left out."""
    options = command_parser().parse_args(argv)
    if options.top < 1:
        raise ValueError(f"--top: expected 1 or more, got {options.top}")
    out = user_path(options.out) if options.out else None
    if out is not None and out.suffix not in FORMATS:
        raise ValueError(f"--out: expected a name that ends in {' or '.join(FORMATS)}, got {out}")
    classifier = load_classifier(user_path(options.model), resolve_device(options.device))
    paths = find_pictures(options.paths, with_arrays=not classifier.config.data.is_rgb)
    if options.threshold is not None and not classifier.is_multi_label:
        raise ValueError(f"--threshold: a picture has one class in {options.model}; --top K names the next ones")
    top = len(classifier.class_names) if classifier.is_multi_label else min(options.top, len(classifier.class_names))
    broken: list[str] = []
    found = show_progress(predict(classifier, paths, broken, top, options.tta == "flip"), len(paths), "predicting")
    write = writer_of(classifier, ".csv" if out is None else out.suffix, top, options.threshold)
    if out is None:
        write(found, Terminal() if sys.stdout.isatty() else sys.stdout)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        with (
            atomic_path(out) as temporary,
            temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
        ):
            write(found, file)
        print(f"{len(paths) - len(broken)} of {len(paths)} pictures in {out}", flush=True)
    for line in broken:
        print(f"left out: {printable(line)}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
open_door(__name__)
