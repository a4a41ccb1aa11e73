"""A dry run measures each kind of group once, and adds up the right numbers."""

import pytest

from lgfast.config import load_recipe, replace
from lgfast.runtime import cores
from lgfast.sweep import dry_run, probe
from lgfast.sweep.dry_run import Progress
from lgfast.sweep.probe import Prediction
from lgfast.sweep.space import read_space
from lgfast.sweep.study import Plan

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


def test_a_busy_machine_is_said_with_the_time_without_it(monkeypatch, capsys):
    """A quarter of the measurement went to others."""
    waited = iter([10.0, 15.0])
    monkeypatch.setattr(dry_run, "waited_for_core_s", lambda: next(waited))
    monkeypatch.setattr(dry_run.time, "monotonic", iter([0.0, 0.0, 20.0]).__next__)
    monkeypatch.setattr(dry_run, "predict", lambda *_: Prediction(groups=1, students=480.0, teacher=0.0))
    dry_run.dry_run(plan(BASE), [{}])
    said = capsys.readouterr().out.splitlines()
    assert said[-2].startswith("1 groups of up to 8; predicted 8 min with 1 worker(s)")
    assert said[-1].startswith("other work kept this process waiting for 25% of the measurement; without it")
    assert said[-1].endswith("about 6 min")


def plan(config, pruner="none"):
    return Plan(config, read_space(["optim.lr=1e-3"], None, config), None, pruner, 8)


def test_what_makes_a_sweep_shorter_than_its_first_steps_is_named():
    guided = load_recipe("digits")
    assert dry_run.shorter(plan(guided)) == []
    assert dry_run.shorter(plan(guided, "median")) == ["where --pruner median ends trials"]
    known = {"teacher.targets": "cached", "data.views": 2, "teacher.bn": "running"}
    reasons = dry_run.shorter(plan(replace(guided, known | {"guidance.stop": "epoch:3"})))
    assert reasons == ["after guidance has ended", "where the teacher's targets are cached already"]


def test_waiting_for_a_core_is_told_by_the_system(monkeypatch, tmp_path):
    (tmp_path / "schedstat").write_text("118017 3223304000 2\n")
    monkeypatch.setattr(cores, "SCHEDSTAT", tmp_path / "schedstat")
    assert cores.waited_for_core_s() == 3.223304
    monkeypatch.setattr(cores, "SCHEDSTAT", tmp_path / "none")
    assert cores.waited_for_core_s() == 0.0
