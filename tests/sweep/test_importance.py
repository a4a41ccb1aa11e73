"""Importance is functional ANOVA: the shares are those of functions whose variance is known by hand."""

import pytest
from optuna.samplers import RandomSampler

from lgfast.config import load_recipe
from lgfast.sweep.importance import find_importance
from lgfast.sweep.results import by_setting, read_runs
from lgfast.sweep.space import read_space
from lgfast.sweep.study import Plan, Study

BASE = load_recipe("digits")
X, Y, Z = "optim.lr", "guidance.weight", "optim.momentum"


def run_all(study, function):
    """Every run of the study ends with what the function says of its values and seed."""
    study.fill()
    study.announce()
    while runs := study.claim():
        for run in runs:
            value = function(run.changes, run.seed)
            study.fail(run.trial, "ValueError: failed") if value is None else study.complete(run.trial, value)
    study.heartbeat.stop()
    return find_importance(study, by_setting(read_runs(study), len(study.plan.space.seeds)))


def of_grid(tmp_path, assignments, function):
    study = Study(str(tmp_path / "study.journal"), "test")
    study.create(Plan(BASE, read_space(assignments, None, BASE), None, "none", 64))
    return run_all(study, function)


GRID = [f"{X}=1,2,3", f"{Y}=1,2,3"]
TABLE = [[10.0, 10.0, 13.0], [10.0, 16.0, 19.0], [10.0, 13.0, 22.0]]  # x down, y across


@pytest.mark.parametrize(
    ("function", "x", "y"),
    [
        (lambda x, y: 50 + 3 * x + y, 0.9, 0.1),  # variances 9 v and v
        (lambda x, y: 50 + 3 * x, 1, 0),
        (lambda x, y: 50 + (x - 2) * (y - 2), 0, 0),  # either alone explains nothing
        # row means 11, 15, 15; column means 10, 13, 18; mean 41/3. Variances 32/9, 98/9; of all cells 158/9
        (lambda x, y: TABLE[int(x) - 1][int(y) - 1], 32 / 158, 98 / 158),
    ],
)
def test_a_whole_grid_is_taken_apart_exactly(tmp_path, function, x, y):
    found = of_grid(tmp_path, GRID, lambda changes, _: function(changes[X], changes[Y]))
    assert found.is_exact and found.left_out == []
    assert found.alone == pytest.approx({X: x, Y: y}, abs=1e-12)
    assert found.together == pytest.approx(1 - x - y, abs=1e-12)
    assert list(found.alone.values()) == sorted(found.alone.values(), reverse=True)


def test_seeds_are_averaged_first(tmp_path):
    noise = {0: 5.0, 1: -5.0}
    found = of_grid(tmp_path, [*GRID, "seed=0,1"], lambda own, seed: 50 + 3 * own[X] + own[Y] + noise[seed])
    assert found.alone == pytest.approx({X: 0.9, Y: 0.1})


def test_nothing_to_weigh(tmp_path):
    for name, assignments, function in (
        ("one key", [f"{X}=1,2,3"], lambda own, _: own[X]),
        ("equal", GRID, lambda own, _: 50.0),
        ("too few", GRID, lambda own, _: own[X] if own[Y] == 1 else None),
    ):
        (tmp_path / name).mkdir()
        assert of_grid(tmp_path / name, assignments, function) is None


def test_a_grid_with_a_gap_is_left_to_the_forest(tmp_path):
    found = of_grid(tmp_path, GRID, lambda own, _: None if (own[X], own[Y]) == (2, 2) else 50 + 3 * own[X] + own[Y])
    assert not found.is_exact and found.alone[X] == pytest.approx(0.9, abs=0.1)


def test_samples_are_weighed_by_a_forest_without_keys_that_some_lack(tmp_path):
    """The same function over a square; a forest of 120 points comes near its shares."""
    space = tmp_path / "space.yaml"
    space.write_text(
        f"{X}: {{low: 0.5, high: 1.5}}\n{Y}: {{low: 0.5, high: 1.5}}\n"
        f"optim.name: [adamw, sgd]\n{Z}: {{low: 0.5, high: 0.9, when: {{optim.name: sgd}}}}\n"
    )
    study = Study(str(tmp_path / "study.journal"), "test")
    study.create(Plan(BASE, read_space([], str(space), BASE), 120, "none", 120))
    study.optuna.sampler = RandomSampler(seed=0)
    found = run_all(study, lambda own, _: 50 + 3 * own.get(X, 1) + own.get(Y, 1))
    assert not found.is_exact and found.left_out == [Z]
    assert found.alone[X] == pytest.approx(0.9, abs=0.05) and found.alone[Y] == pytest.approx(0.1, abs=0.05)
    assert found.alone["optim.name"] < 0.02
