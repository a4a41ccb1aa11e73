"""What a dry run measures, and what it adds up."""

import pytest

from lgfast.config import load_recipe, replace
from lgfast.sweep import dry_run, probe
from lgfast.sweep.dry_run import Progress

BASE = replace(load_recipe("digits-base"), {"device": "cpu", "precision": "fp32"})


@pytest.fixture
def measured(monkeypatch):
    """Every group takes a second a trial and epoch; the groups that were measured."""
    chunks = []
    monkeypatch.setattr(probe, "measure", lambda chunk: chunks.append(chunk) or sum(c.epochs for c in chunk))
    return chunks


def test_groups_of_one_kind_are_measured_once(measured):
    """Three seeds, each with its own views, of four learning rates."""
    configs = [replace(BASE, {"optim.lr": lr, "seed": seed}) for seed in range(3) for lr in (1e-3, 2e-3, 3e-3, 4e-3)]
    found = probe.predict(configs, group=4)
    assert [len(chunk) for chunk in measured] == [4]
    assert (found.groups, found.students, found.teacher) == (3, 12 * BASE.epochs, 0)
    assert found.total(workers=2) == 6 * BASE.epochs


def test_groups_of_another_size_or_model_are_measured_too(measured):
    configs = [
        replace(BASE, {"epochs": epochs, "model.depth": depth}) for epochs, depth in ((5, 2), (5, 2), (5, 2), (7, 3))
    ]
    told = []
    found = probe.predict(configs, 2, lambda *numbers: told.append(numbers))
    assert [len(chunk) for chunk in measured] == [2, 1, 1]
    assert told == [(1, 3, 2), (2, 3, 1), (3, 3, 1)]
    assert (found.groups, found.students) == (3, 5 + 5 + 5 + 7)


def test_kinds_beyond_those_measured_cost_the_mean(measured):
    configs = [replace(BASE, {"epochs": epochs, "model.depth": epochs}) for epochs in range(1, 7)]
    assert probe.predict(configs, 1).students == 1 + 2 + 3 + 4 + 2.5 + 2.5


def test_a_teacher_that_has_to_be_trained_is_measured_too(measured, tmp_path):
    guided = replace(BASE, {"guidance.weight": 2.5, "augment.teacher_size": 16, "teacher.cache": str(tmp_path)})
    found = probe.predict([guided], 1)
    assert [chunk[0].model.name for chunk in measured] == [BASE.model.name, "cifar_resnet8"]
    assert found.teacher == measured[1][0].epochs and found.total(1) == found.teacher + BASE.epochs


def test_progress_says_how_long_the_measurements_still_take(monkeypatch, capsys):
    now = iter([100.0, 100.0, 130.0, 190.0])
    monkeypatch.setattr(dry_run.time, "monotonic", lambda: next(now))
    say = Progress()
    for numbers in ((1, 3, 8), (2, 3, 8), (3, 3, 1)):
        say(*numbers)
    assert capsys.readouterr().out.splitlines() == [
        "measuring 1 of 3: some steps of 8 trials of one group",
        "measuring 2 of 3: some steps of 8 trials of one group, 1 min left",
        "measuring 3 of 3: some steps of one run, 45 s left",
    ]
