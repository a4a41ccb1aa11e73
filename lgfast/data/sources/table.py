"""Image files whose labels stand in a table: a CSV with the columns `file` and `label`, a row an image.

Further columns may say the part (`split`: train, test or val) and what groups images (`data.group`).
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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


def read_table(path: Path, root: Path) -> LabelTable:
    """A table of labels.

    Args:
        root: below which the table's paths lie, unless they are absolute.
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
    check_rows(path, root, names, rows)
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


def check_rows(path: Path, root: Path, names: Sequence[str], rows: Sequence[tuple[int, dict]]) -> None:
    seen: dict[str, int] = {}
    parts = {part for found in SPLIT_FOLDERS.values() for part in found}
    for line, row in rows:
        if None in row or None in row.values():
            raise ValueError(f"data.labels: {path}, line {line}: expected {len(names)} values, as the first line has")
        if not row[FILE] or not row[LABEL]:
            raise ValueError(f"data.labels: {path}, line {line}: file and label must not be empty")
        if (first := seen.setdefault(os.path.normpath(root / row[FILE]), line)) != line:
            raise ValueError(f"data.labels: {path}, line {line}: {row[FILE]} was named in line {first} already")
        if SPLIT in names and row[SPLIT] not in parts:
            raise ValueError(f"data.labels: {path}, line {line}: split must be train, test or val, got {row[SPLIT]!r}")
    if not rows:
        raise ValueError(f"data.labels: {path} has no rows")


def table_source(root: Path, labels: Path, split: str, test_fraction: float) -> Source:
    """A part of the images of a table; classes are its sorted labels.

    Args:
        root: folder of the images.
        test_fraction: share of every class that is the test part of a table without the column `split`, chosen by the
            names of the files; 0: all is for training.
    """
    table = read_table(labels, root)
    columns = table.columns
    class_names = tuple(sorted(set(columns[LABEL])))
    files: list[Path] = []
    numbers: list[int] = []
    for number, name in enumerate(class_names):
        inside = [row for row, label in enumerate(columns[LABEL]) if label == name]
        if SPLIT in columns:
            found = [Path(columns[FILE][row]) for row in inside if columns[SPLIT][row] in SPLIT_FOLDERS[split]]
        else:
            found = part_of([Path(columns[FILE][row]) for row in inside], root, split, test_fraction)
        files += found
        numbers += [number] * len(found)
    if not files:
        raise FileNotFoundError(f"data.labels: {labels} names no image of the {split} part")
    name = labels.stem if test_fraction == 0 and SPLIT not in columns else f"{labels.stem}-{split}"
    return file_source(name, root, files, numbers, class_names, lists=[labels])
