"""Image files whose labels stand in a table: a CSV with the columns `file` and `label`, a row an image.

A separator parts several classes of one image.

Further columns may say the part (`split`: train, test or val) and what groups images (`data.group`).
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lgfast.data.errors import some
from lgfast.data.sources.image_folder import SPLIT_FOLDERS, part_of
from lgfast.data.sources.source import Source, file_source

FILE, LABEL, SPLIT = "file", "label", "split"


@dataclass(frozen=True)
class LabelTable:
    """Rows of a CSV; paths are complete.

    Attributes:
        path: of the CSV.
        columns: values by name, each a row long; `file` holds paths.
    """

    path: Path
    columns: dict[str, list[str]]

    def group_of(self, column: str) -> dict[str, str]:
        """The value of a column by path."""
        return dict(zip(self.columns[FILE], self.columns[column], strict=True))


def read_table(path: Path, root: Path, separator: str = "") -> LabelTable:
    """A table of labels.

    Args:
        root: below which the table's paths lie, unless they are absolute.
        separator: parts the classes of an image, which may have none then; "": each has one.
    Raises:
        FileNotFoundError: there is no such table, or it names files that are not there.
        ValueError: a column or a value is missing, a file is named twice, or a part is none; says the line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"data.labels: no table at {path}; a path of its own or below data.root")
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.DictReader(file, strict=True)
            names = tuple(reader.fieldnames or ())
            check_columns(path, names)
            rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise ValueError(f"data.labels: {path} is no CSV ({error})") from error
    check_rows(path, root, names, rows, needs_label=not separator)
    columns = {name: [row[name] for _, row in rows] for name in names}
    columns[FILE] = [str(root / name) for name in columns[FILE]]
    if absent := [name for name in columns[FILE] if not Path(name).is_file()]:
        raise FileNotFoundError(f"data.labels: {len(absent)} files of {path} are not there ({some(absent)})")
    return LabelTable(path, columns)


def check_columns(path: Path, names: Sequence[str]) -> None:
    if missing := [name for name in (FILE, LABEL) if name not in names]:
        raise ValueError(
            f"data.labels: {path} has no column {missing[0]!r}; its columns are {', '.join(names) or 'none'} (expected "
            "file,label in the first line: UTF-8, separated by commas without spaces)"
        )
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"data.labels: {path} has two columns {twice[0]!r}; rename or remove one")


def check_rows(
    path: Path, root: Path, names: Sequence[str], rows: Sequence[tuple[int, dict]], needs_label: bool
) -> None:
    seen: dict[str, int] = {}
    parts = {part for found in SPLIT_FOLDERS.values() for part in found}
    for line, row in rows:
        if None in row or None in row.values():
            raise ValueError(f"data.labels: {path}, line {line}: expected {len(names)} values, as the first line has")
        if not row[FILE] or (needs_label and not row[LABEL]):
            needed = "file and label" if needs_label else "file"
            raise ValueError(f"data.labels: {path}, line {line}: {needed} must not be empty")
        if (first := seen.setdefault(os.path.normpath(root / row[FILE]), line)) != line:
            raise ValueError(f"data.labels: {path}, line {line}: {row[FILE]} was named in line {first} already")
        if SPLIT in names and row[SPLIT] not in parts:
            raise ValueError(f"data.labels: {path}, line {line}: split must be train, test or val, got {row[SPLIT]!r}")
    if not rows:
        raise ValueError(f"data.labels: {path} has no rows")


def table_source(root: Path, labels: Path, split: str, test_fraction: float, separator: str = "") -> Source:
    """A part of the images of a table; classes are its sorted labels.

    Args:
        root: folder of the images.
        test_fraction: share of every class that is the test part of a table without the column `split`, chosen by the
            names of the files; 0: all is for training.
        separator: parts the classes of an image, which are label sets then; "": each has one.
    """
    columns = read_table(labels, root, separator).columns
    sets = [split_labels(text, separator) for text in columns[LABEL]]
    class_names = tuple(sorted(set().union(*sets)))
    if not class_names:
        raise ValueError(f"data.labels: {labels} names no class")
    groups = rarest(sets, class_names)
    rows: list[int] = []
    for number in range(len(class_names) + 1):
        inside = [row for row, group in enumerate(groups) if group == number]
        if SPLIT in columns:
            rows += [row for row in inside if columns[SPLIT][row] in SPLIT_FOLDERS[split]]
        else:
            of_path = {Path(columns[FILE][row]): row for row in inside}
            rows += [of_path[path] for path in part_of(list(of_path), root, split, test_fraction)]
    if not rows:
        raise FileNotFoundError(f"data.labels: {labels} names no image of the {split} part")
    name = labels.stem if test_fraction == 0 and SPLIT not in columns else f"{labels.stem}-{split}"
    files = [Path(columns[FILE][row]) for row in rows]
    numbers = [0 if separator else groups[row] for row in rows]
    matrix = np.array([[name in sets[row] for name in class_names] for row in rows], np.float32) if separator else None
    return file_source(name, root, files, numbers, class_names, lists=[labels], label_sets=matrix)


def split_labels(text: str, separator: str) -> set[str]:
    """The classes in a cell."""
    if not separator:
        return {text}
    return {name.strip() for name in text.split(separator)} - {""}


def rarest(sets: Sequence[set[str]], class_names: Sequence[str]) -> list[int]:
    """The class of each image by number, of several the rarest; as many as there are classes where it has none."""
    counts = Counter(name for names in sets for name in names)
    places = {name: place for place, name in enumerate(class_names)}
    return [places[min(names, key=lambda name: (counts[name], name))] if names else len(places) for names in sets]
