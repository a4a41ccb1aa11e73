"""What a person sees while a sweep runs."""

import io
import sys
import time

import pyte
import pytest

from lgfast.config import load_recipe
from lgfast.sweep import display as display_module
from lgfast.sweep.display import Display
from lgfast.sweep.space import read_space
from lgfast.sweep.study import Plan, Study


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def study(tmp_path):
    base = load_recipe("digits")
    study = Study(str(tmp_path / "study.journal"), "test")
    study.create(Plan(base, read_space(["optim.lr=1e-3,2e-3", "seed=0,1"], None, base), None, "none", 8))
    study.fill()
    study.announce()
    yield study
    study.heartbeat.stop()


def screen(text, columns=200, lines=60):
    """The lines that a terminal shows after `text`."""
    terminal = pyte.Screen(columns, lines)
    pyte.Stream(terminal).feed(text.replace("\n", "\r\n"))  # as a terminal driver does
    return [line.rstrip() for line in terminal.display if line.strip()]


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("LINES", "60")
    return Terminal()


def test_a_terminal_shows_one_table_that_follows_the_study(study, terminal):
    with Display(study, terminal) as display:
        display.update(force=True)
        runs = study.claim()
        display.update(force=True)
        assert screen(terminal.getvalue())[-1] == "2 running, 2 waiting"
        study.complete(runs[0].trial, 50.0)
        runs[1].trial.report(60.0, 3)
        display.update(force=True)
        assert screen(terminal.getvalue()) == [
            "setting  validation (%)  so far (%)  seeds  state                  optim.lr",
            "      0           50.00           -    1/2  1 complete, 1 waiting     0.001",
            "      1               -       60.00    0/2  1 running, 1 waiting      0.002",
            "1 complete, 1 running, 2 waiting",
        ]
    assert screen(terminal.getvalue()) == []


def test_the_table_stays_below_what_else_is_printed_and_is_erased_at_the_end(study, terminal, monkeypatch):
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    with Display(study) as display:
        for number in range(3):
            display.update(force=True)
            print("note", number, file=sys.stderr if number == 1 else sys.stdout)
        sys.stderr.write("a line that is ")
        display.update(force=True)
        assert not sys.stderr.isatty()  # bars would be drawn over the table
        shown = screen(terminal.getvalue())
        assert shown[:3] == ["note 0", "note 1", "note 2"] and shown[-1] == "4 waiting"
        assert sum(line.startswith("setting") for line in shown) == 1
        sys.stderr.write("whole at last")
    assert sys.stdout is terminal
    assert screen(terminal.getvalue()) == ["note 0", "note 1", "note 2", "a line that is whole at last"]


@pytest.mark.parametrize(("columns", "lines"), [(40, 40), (80, 5), (200, 40)])
def test_the_table_fits_the_terminal(study, terminal, monkeypatch, columns, lines):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", str(lines))
    with Display(study, terminal) as display:
        for _ in range(3):
            display.update(force=True)
        shown = screen(terminal.getvalue(), columns, lines)
    assert len(shown) < lines and max(map(len, shown)) < columns
    assert shown[-1] == "4 waiting" and shown[0].startswith("setting  validation (%)  seeds")
    assert (shown[0][-1] == "\N{HORIZONTAL ELLIPSIS}") is (columns == 40)
    assert ("... and 1 more" in shown) is (lines == 5)
    assert screen(terminal.getvalue(), columns, lines) == []


def test_a_terminal_that_can_move_no_cursor_gets_lines(study, terminal, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    with Display(study, terminal) as display:
        study.claim()
        display.update(force=True)
    assert "\x1b" not in terminal.getvalue() and terminal.getvalue().count(": running") == 2


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


def test_a_file_gets_a_line_a_minute_while_nothing_changes(study, monkeypatch):
    monkeypatch.setattr(display_module, "TICK_S", 0.01)
    monkeypatch.setattr(display_module, "REDRAW_S", 0.0)
    monkeypatch.setattr(display_module, "LINE_EVERY_S", 0.05)
    stream = io.StringIO()
    with Display(study, stream, budget_s=lambda: 125.0):
        deadline = time.monotonic() + 300
        while stream.getvalue().count("\n") < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert set(stream.getvalue().splitlines()) == {"4 waiting; stops in 2 min"}


def test_what_an_error_holds_steers_no_terminal(study, terminal):
    (run, *_) = study.claim()
    study.fail(run.trial, "ValueError: no image a\x1b[2Jb")
    stream = io.StringIO()
    with Display(study, stream) as display:
        display.update(force=True)
    with Display(study, terminal) as display:
        display.update(force=True)
        print("no image c\x1b[2Jd")
    assert "\x1b[2J" not in stream.getvalue() + terminal.getvalue()
    assert r"a\x1b[2Jb" in stream.getvalue() and r"c\x1b[2Jd" in terminal.getvalue()
