"""One table in every form: aligned, escaped, and without what would steer a terminal."""

import csv
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lgfast.reports.table import Column, Table, is_number, write_csv

ROWS = [{"name": "a", "top1": 9.5, "state": "done"}, {"name": "bb", "top1": None, "state": ""}]
COLUMNS = [
    Column("name", lambda row: row["name"]),
    Column("top-1", lambda row: "-" if row["top1"] is None else f"{row['top1']:.2f} ± 0.10"),
    Column("state", lambda row: row["state"]),
]
NASTY = "<b>\x1b[2J|\n\udce9$x_{$"


class Reader(HTMLParser):
    """Class, text and address of every cell, by row."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.tags = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        attrs = dict(attrs)
        if tag == "tr":
            self.rows.append([attrs.get("class")])
        elif tag in ("td", "th"):
            self.rows[-1].append([attrs.get("class"), "", None])
        elif tag == "a":
            self.rows[-1][-1][2] = attrs["href"]

    def handle_data(self, data):
        if self.rows and self.lasttag in ("td", "th", "a") and data.strip():
            self.rows[-1][-1][1] += data


def test_a_terminal_gets_columns_with_numbers_to_the_right():
    assert Table.of(ROWS, COLUMNS).lines() == [
        "name        top-1  state",
        "a     9.50 ± 0.10  done",
        "bb              -",
    ]


@pytest.mark.parametrize("width", [1, 8, 40])
def test_lines_are_cut_to_the_terminal(width):
    whole = Table.of(ROWS, COLUMNS).lines()
    for line, full in zip(Table.of(ROWS, COLUMNS).lines(width), whole, strict=True):
        assert len(line) <= width
        assert line == full or (line[:-1] == full[: width - 1] and line[-1] == "\N{HORIZONTAL ELLIPSIS}")


def test_markdown_has_one_line_a_row():
    assert Table.of(ROWS, COLUMNS).markdown() == (
        "| name | top-1 | state |\n|---|---|---|\n| a | 9.50 ± 0.10 | done |\n| bb | - |  |"
    )


def test_html_marks_the_best_row_and_links_cells():
    table = Table(["name", "n"], [["x", "1"], ["y", "2"]], best=1, links={(0, 0): "runs/x y", (1, 1): "z"})
    assert Reader(table.html()).rows == [
        [None, [None, "name", None], ["number", "n", None]],
        [None, [None, "x", "runs/x y"], ["number", "1", None]],
        ["best", [None, "y", None], ["number", "2", "z"]],
    ]
    assert Reader(table.head(1).html()).rows[1:] == [[None, [None, "x", "runs/x y"], ["number", "1", None]]]


def test_text_stays_text_whatever_it_holds():
    table = Table(["name"], [[NASTY]], links={(0, 0): '"><script>'})
    (line,) = table.lines()[1:]
    assert line == r"<b>\x1b[2J|\n\udce9$x_{$"
    assert table.markdown().splitlines()[2] == r"| <b>\x1b[2J\|\n\udce9$x_{$ |"
    assert not Reader(table.html()).tags & {"b", "script"}


def test_a_table_without_rows_has_its_titles():
    table = Table.of([], COLUMNS)
    assert table.lines() == ["name  top-1  state"]
    assert len(Reader(table.html()).rows) == 1 and table.markdown().count("\n") == 1


@pytest.mark.parametrize(
    ("text", "is_one"),
    [("", True), ("-", True), ("1/3", True), ("-1.5", True), ("1e-3", True), ("6.1 ± 2", True), ("1 of 3", False)],
)
def test_numbers_are_known(text, is_one):
    assert is_number(text) is is_one


def test_csv_holds_the_values_in_full(tmp_path):
    rows = [{"name": NASTY, "top1": 1 / 3}, {"name": "b", "top1": None}]
    write_csv(tmp_path / "new" / "table.csv", rows)
    with (tmp_path / "new" / "table.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        assert list(csv.DictReader(file)) == [
            {"name": rows[0]["name"], "top1": repr(1 / 3)},
            {"name": "b", "top1": ""},
        ]


def test_a_csv_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "table.csv"
    write_csv(path, [{"a": 1}])
    with pytest.raises(ValueError, match="not in fieldnames"):
        write_csv(path, [{"a": 2}, {"b": 3}])
    assert path.read_text() == "a\n1\n" and list(tmp_path.iterdir()) == [path]
    write_csv(Path("/dev/null"), [{"a": 1}])  # a device is written to, not replaced
