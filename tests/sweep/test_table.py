"""What a person sees while a sweep runs."""

import io
import re

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
    """The lines a terminal shows after `text`: cursor up, erase line, erase below."""
    lines, row = [""], 0
    for part in re.findall(r"\x1b\[\d+[AKJ]|\n|[^\x1b\n]+", text):
        if part.endswith("A") and part[0] == "\x1b":
            row -= int(part[2:-1])
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part == "\x1b[0J":
            del lines[row + 1 :]
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
        "setting  optim.lr  val top-1 (%)  seeds  state",
        "1        0.002     50.00          1/2    1 complete, 1 waiting",
        "0        0.001     40.00          1/2    1 complete, 1 waiting",
        "2 complete, 2 waiting",
    ]


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
