"""A sweep's time left follows from the epochs that its runs report; only complete runs enter a setting's mean."""

import pytest

from lgfast.config import load_recipe, replace
from lgfast.reports.spread import Spread
from lgfast.sweep import forecast
from lgfast.sweep.forecast import Forecast
from lgfast.sweep.results import RunRow, by_setting, find_winner
from lgfast.sweep.space import read_space
from lgfast.sweep.study import Plan
from tests.clock import replaced_clock

BASE = replace(load_recipe("digits"), {"epochs": 10})


def plan(assignments, trials=None, base=BASE):
    return Plan(base, read_space(assignments, None, base), trials, "none", 8)


def row(setting, epoch, state="running", top1=None, seed=0):
    return RunRow(setting, seed, {"optim.lr": setting}, state, top1, epoch, None, "", "", {})


@pytest.fixture
def clock(monkeypatch):
    return replaced_clock(monkeypatch, forecast)


def look(ahead, clock, now, *epochs):
    clock.now = now
    states = ["complete" if epoch == 10 else "running" if epoch is not None else "waiting" for epoch in epochs]
    return ahead.left_s(
        [row(n, epoch or 0, state) for n, (epoch, state) in enumerate(zip(epochs, states, strict=True))]
    )


def test_a_pace_is_taken_over_whole_epochs_of_a_group(clock):
    """Two runs train side by side, 5 s an epoch of both; two more wait. The teacher came first."""
    ahead = Forecast(plan(["optim.lr=1e-3,2e-3,3e-3,4e-3"]))
    assert look(ahead, clock, 100, 0, 0, None, None) is None
    assert look(ahead, clock, 105.0, 1, 0, None, None) is None
    assert look(ahead, clock, 105.1, 1, 1, None, None) is None  # no pace of ten epochs a second
    assert look(ahead, clock, 110.0, 2, 1, None, None) == pytest.approx(37 * 2.5)
    assert look(ahead, clock, 111.0, 2, 2, None, None) == pytest.approx(36 * 2.5 - 1)
    assert look(ahead, clock, 155.0, 10, 10, 1, 0) == pytest.approx(19 * 50 / 20, rel=0.05)
    assert look(ahead, clock, 160.0, 10, 10, 2, 1) == pytest.approx(17 * 55 / 22, rel=0.05)
    assert look(ahead, clock, 205.0, 10, 10, 10, 10) == 0


def test_what_a_resumed_sweep_did_before_is_no_pace(clock):
    ahead = Forecast(plan(["optim.lr=1e-3,2e-3"]))
    assert look(ahead, clock, 0, 10, 5) is None
    assert look(ahead, clock, 10, 10, 6) is None
    assert look(ahead, clock, 20, 10, 7) == pytest.approx(30)


@pytest.mark.parametrize(("trials", "left"), [(4, 29), (None, None)])
def test_settings_that_are_not_drawn_yet_count(tmp_path, trials, left):
    path = tmp_path / "space.yaml"
    path.write_text("optim.lr: {low: 1.0e-4, high: 1.0e-2}\n")
    space = Plan(BASE, read_space([], str(path), BASE), trials, "none", 8)
    rows = [row(0, 10, "complete"), row(1, 3, "pruned"), row(2, 1)]
    assert Forecast(space).epochs_left(rows) == (None if left is None else 9 + 10)


def test_runs_that_steps_end_have_no_forecast():
    base = replace(BASE, {"max_steps": 3})
    assert Forecast(plan(["optim.lr=1e-3"], base=base)).epochs_left([row(0, 0)]) is None


def test_runs_under_way_enter_neither_mean_nor_spread():
    """After Ctrl-C, for instance, one seed is complete and the others stopped where they were."""
    rows = [row(0, 10, "complete", 60.0, 0), row(0, 3, "saved", 20.0, 1), row(0, 5, "running", 30.0, 2)]
    rows += [row(1, 2, "saved", 99.0, seed) for seed in range(3)] + [row(2, 0, "waiting")]
    first, second, third = by_setting(rows, seeds=3)
    assert (first.setting, first.val_score, first.so_far, first.seeds) == (0, Spread(60.0, None), 30.0, 1)
    assert (second.setting, second.val_score, second.so_far, second.seeds) == (1, Spread(None, None), 99.0, 0)
    assert (third.setting, third.best_known) == (2, None)
    assert find_winner([first, second, third]) is None


def test_a_pruned_run_has_no_mean():
    (only,) = by_setting([row(0, 3, "pruned", 20.0)], seeds=1)
    assert only.val_score == Spread(None, None) and only.so_far == 20.0
