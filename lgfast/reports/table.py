"""Make a table once, and write it for a terminal, as Markdown or as HTML. Write rows of values as CSV."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lgfast.records.files import atomic_path
from lgfast.reports.html import render
from lgfast.runtime.printable import printable

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """A column: its title, and the function that makes a row's cell."""

    title: str
    cell: Callable[[Any], str]


@dataclass(frozen=True)
class Table:
    """Cells of text below titles.

    `best` is the row that stands out; `links` are addresses by (row, column), which HTML shows.
    """

    titles: Sequence[str]
    rows: Sequence[Sequence[str]]
    best: int | None = None
    links: Mapping[tuple[int, int], str] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Iterable[Any], columns: Sequence[Column]) -> Table:
        return cls([column.title for column in columns], [[column.cell(row) for column in columns] for row in rows])

    @property
    def are_numbers(self) -> list[bool]:
        """Which columns hold only numbers; those are aligned right."""
        columns = zip(*self.rows, strict=True) if self.rows else [[]] * len(self.titles)
        return [all(map(is_number, column)) for column in columns]

    def head(self, count: int) -> Table:
        """Return the first rows as a table, with their links."""
        links = {cell: address for cell, address in self.links.items() if cell[0] < count}
        best = self.best if self.best is not None and self.best < count else None
        return Table(self.titles, self.rows[:count], best, links)

    def lines(self, width: int | None = None) -> list[str]:
        """Return lines with aligned columns for a terminal, cut to `width` characters where given."""
        rows = [[printable(cell) for cell in row] for row in (self.titles, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        aligned = [str.rjust if is_right else str.ljust for is_right in self.are_numbers]
        lines = [
            "  ".join(align(cell, width) for align, cell, width in zip(aligned, row, widths, strict=True))
            for row in rows
        ]
        return [shorten(line.rstrip(), width) if width else line.rstrip() for line in lines]

    def markdown(self) -> str:
        rows = [[printable(cell).replace("|", r"\|") for cell in row] for row in (self.titles, *self.rows)]
        head, *body = [f"| {' | '.join(row)} |" for row in rows]
        return "\n".join([head, "|" + "---|" * len(self.titles), *body])

    def html(self) -> str:
        return render("table.html", table=self)


def is_number(text: str) -> bool:
    """Whether a cell is a number, a number with its spread, a share such as 1/3, or empty."""
    try:
        return text in ("", "-") or all(float(part) is not None for part in text.replace("±", "/").split("/"))
    except ValueError:
        return False


def shorten(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "\N{HORIZONTAL ELLIPSIS}"


def write_csv(path: Path, rows: Sequence[Row], names: Sequence[str] | None = None) -> None:
    """Write the rows' values in full, None as an empty cell. An existing file is replaced as a whole.

    Args:
        names: the columns' names; None: those of the first row.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    is_device = path.exists() and not path.is_file()  # such as /dev/stdout
    with (
        nullcontext(path) if is_device else atomic_path(path) as target,
        target.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.DictWriter(file, fieldnames=list(names or rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
