"""What a person sees while a sweep runs."""

import io
import re
import sys

import pytest

from lgfast.config import load_recipe
from lgfast.sweep.space import read_space
from lgfast.sweep.study import Plan, Study
from lgfast.sweep.table import Display


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def study(tmp_path):
    base = load_recipe("digits")
    study = Study(str(tmp_path / "study.journal"), "test")
    study.create(Plan(base, read_space(["optim.lr=1e-3,2e-3", "seed=0,1"], None, base), None, "none", 8))
    study.announce()
    yield study
    study.heartbeat.stop()


def screen(text):
    """The lines a terminal shows after `text`: cursor up, erase line, erase below; text starts at the left."""
    lines, row = [""], 0
    for part in re.findall(r"\x1b\[\d+[AKJ]|\n|[^\x1b\n\r]+", text):
        if part.endswith("A") and part[0] == "\x1b":
            row -= int(part[2:-1])
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part == "\x1b[0J":
            del lines[row + 1 :]
            lines[row] = ""
        elif part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        else:
            lines[row] += part
    return [line for line in lines if line]


def test_a_terminal_shows_one_table_that_follows_the_study(study):
    display = Display(study, Terminal())
    display.update(force=True)
    runs = study.claim()
    display.update(force=True)
    assert screen(display.stream.getvalue())[-1] == "2 running, 2 waiting"
    for run, top1 in zip(runs, (40.0, 50.0), strict=True):
        study.complete(run.trial, top1)
    display.update(force=True)
    assert screen(display.stream.getvalue()) == [
        "setting  val top-1 (%)  seeds  state                  optim.lr",
        "      1          50.00    1/2  1 complete, 1 waiting     0.002",
        "      0          40.00    1/2  1 complete, 1 waiting     0.001",
        "2 complete, 2 waiting",
    ]


def test_the_table_stays_below_what_else_is_printed_and_is_erased_at_the_end(study, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    with Display(study) as display:
        for number in range(3):
            display.update(force=True)
            print("note", number, file=sys.stderr if number == 1 else sys.stdout)
        display.update(force=True)
        shown = screen(terminal.getvalue())
        assert shown[:3] == ["note 0", "note 1", "note 2"] and shown[-1] == "4 waiting"
        assert sum(line.startswith("setting") for line in shown) == 1
    assert sys.stdout is terminal
    assert screen(terminal.getvalue()) == ["note 0", "note 1", "note 2"]


@pytest.mark.parametrize(("columns", "lines"), [(40, 40), (80, 5), (200, 40)])
def test_the_table_fits_the_terminal(study, monkeypatch, columns, lines):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", str(lines))
    display = Display(study, Terminal())
    display.update(force=True)
    shown = screen(display.stream.getvalue())
    assert len(shown) < lines and max(map(len, shown)) < columns
    assert shown[-1] == "4 waiting" and shown[0].startswith("setting  val top-1 (%)  seeds")
    assert (shown[0][-1] == "\N{HORIZONTAL ELLIPSIS}") is (columns == 40)
    assert ("... and 1 more" in shown) is (lines == 5)


def test_a_file_gets_a_line_for_every_change(study):
    display = Display(study, io.StringIO())
    run = study.claim()[0]
    display.update(force=True)
    study.complete(run.trial, 40.0)
    display.update(force=True)
    display.update(force=True)
    lines = display.stream.getvalue().splitlines()
    assert [line.split(": ")[1].split()[0] for line in lines] == ["running", "running", "complete"]
    assert "setting 0 seed 0 optim.lr=0.001: complete  val 40.00 %" in lines[-1]
