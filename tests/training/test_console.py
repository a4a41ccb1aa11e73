"""A run shows how long it still takes, and prints a line a minute where no bar is shown."""

import io

import pytest

from lgfast.training import console
from lgfast.training.console import Pace, duration, epoch_message, has_line, progress_bar
from tests.clock import replaced_clock

ROW = {"epoch": 2, "loss": 1.0, "guidance_loss": 0.0, "distill_loss": 0.0, "train_top1": 50.0, "lr": 1e-3}


@pytest.fixture
def clock(monkeypatch):
    return replaced_clock(monkeypatch, console)


def test_what_is_left_follows_from_the_steps_since_the_first(clock):
    clock.now = 500.0  # set-up, which does not come again
    pace = Pace(total=100)
    assert pace.left_s(1) is None
    clock.now += 30.0
    assert pace.left_s(11) == pytest.approx(89 * 3.0)
    clock.now += 100.0  # an evaluation
    assert pace.left_s(11) == pytest.approx(89 * 13.0)
    assert pace.left_s(100) == 0


def test_a_resumed_run_counts_its_own_steps_alone(clock):
    pace = Pace(total=1000)
    pace.left_s(901)
    clock.now = 20.0
    assert pace.left_s(911) == pytest.approx(89 * 2.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (3570, "1 h 00 min"), (3540, "59 min"), (7500, "2 h 05 min")],
)
def test_durations_read_as_people_say_them(seconds, text):
    assert duration(seconds) == text


def test_an_epochs_line_ends_with_what_is_left():
    assert epoch_message("run", 4, ROW, 3.0, 90.0).endswith("  3.0 s  2 min left")
    assert epoch_message("run", 4, ROW, 3.0, 0.0).endswith("  3.0 s")
    assert epoch_message("run", 4, ROW, 3.0).endswith("  3.0 s")


@pytest.mark.parametrize(("epochs", "lines"), [(1, 1), (300, 300), (401, 201), (4000, 400), (4001, 364)])
def test_a_run_of_very_many_epochs_has_some_hundred_lines(epochs, lines):
    shown = [epoch for epoch in range(1, epochs + 1) if has_line(epoch, epochs)]
    assert len(shown) == lines and shown[-1] == epochs


class Terminal(io.StringIO):
    def isatty(self):
        return True


def watch(clock, monkeypatch, stderr, **options):
    """Take 10 batches of 25 s each, and return what standard error got."""
    monkeypatch.setattr("sys.stderr", stderr)
    for batch in progress_bar(range(10), "run  epoch 2/2", 10, Pace(20), **options):
        clock.now += 25.0
        assert batch in range(10)
    return stderr.getvalue()


def test_a_file_gets_a_line_a_minute(clock, monkeypatch, capsys):
    assert watch(clock, monkeypatch, io.StringIO()) == ""
    assert capsys.readouterr().out.splitlines() == [
        f"run  epoch 2/2  step {step} of 20  {left} left" for step, left in ((13, "3 min"), (16, "2 min"), (19, "25 s"))
    ]


def test_a_quiet_run_and_a_terminal_get_no_lines(clock, monkeypatch, capsys):
    assert watch(clock, monkeypatch, io.StringIO(), has_lines=False) == ""
    monkeypatch.undo()
    monkeypatch.setattr(console, "time", clock)
    assert "run  epoch 2/2" in watch(clock, monkeypatch, Terminal())
    assert capsys.readouterr().out == ""
