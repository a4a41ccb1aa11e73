"""The study decides what runs where: claims, groups, lost workers, seeds. No training here."""

import threading
from types import SimpleNamespace

import pytest
from optuna.trial import TrialState

from lgfast.config import load_recipe, replace
from lgfast.sweep import liveness, storage
from lgfast.sweep import study as study_module
from lgfast.sweep.results import by_setting, find_winner, read_runs
from lgfast.sweep.space import read_space
from lgfast.sweep.study import Plan, Study

BASE = load_recipe("digits")
GRID = ["optim.lr=1e-3,2e-3", "seed=0,1"]


def plan(assignments=GRID, group=8, base=BASE):
    return Plan(base, read_space(assignments, None, base), None, "none", group)


def sampled_plan(tmp_path, trials=3):
    path = tmp_path / "space.yaml"
    path.write_text("optim.lr: {low: 1.0e-4, high: 1.0e-2, log: true}\nseed: [0, 1]\n")
    return Plan(BASE, read_space([], str(path), BASE), trials, "median", 2)


@pytest.fixture(params=["journal", "sqlite"])
def place(request, tmp_path):
    return str(tmp_path / "study.journal") if request.param == "journal" else f"sqlite:///{tmp_path}/study.db"


announced = []


@pytest.fixture(autouse=True)
def silence():
    yield
    while announced:
        announced.pop().heartbeat.stop()


def worker(place, new_plan=None):
    study = Study(place, "test")
    study.create(new_plan) if new_plan else study.join()
    study.fill()
    study.announce()
    announced.append(study)
    return study


def settings_of(runs):
    return [(run.setting, run.seed) for run in runs]


def test_joined_study_has_the_same_plan(place):
    first = worker(place, plan())
    assert worker(place).plan == first.plan


def test_a_study_is_created_once(place):
    first = worker(place, plan())
    assert not Study(place, "test").create(plan(["optim.lr=5e-3"]))
    assert worker(place).plan == first.plan


def test_a_trial_is_claimed_by_one_worker_alone(place):
    worker(place, plan(["seed=0,1,2,3,4,5,6,7,8,9,10,11"]))
    workers, start = [Study(place, "test") for _ in range(4)], threading.Barrier(4)
    for one in workers:
        one.join()
    claimed = []

    def claim(study):
        for _ in range(3):
            start.wait()
            claimed.append(study.optuna.ask().number)

    threads = [threading.Thread(target=claim, args=(one,)) for one in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == list(range(12))


def test_joining_nothing_is_refused(place, monkeypatch):
    monkeypatch.setattr(study_module, "READY_S", 0.1)
    with pytest.raises(ValueError, match="holds no sweep named 'test'"):
        Study(place, "test").join()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite:////no/such/folder/study.db", "--study: cannot open sqlite:////no/such/folder/study.db: .*unable to"),
        ("mysql+cymysql://host/base", "needs a database driver .*'cymysql'"),
        ("nosql://host/base", "cannot open nosql://host/base: Can't load plugin"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_named_with_the_reason(monkeypatch, url, message):
    monkeypatch.setattr(storage, "RETRY_S", 0.01)
    with pytest.raises(ValueError, match=message):
        Study(url, "test")


def test_runs_of_one_group_are_claimed_together(place):
    study = worker(place, plan())
    assert settings_of(study.claim()) == [(0, 0), (1, 0)]  # views follow the seed
    assert settings_of(study.claim()) == [(0, 1), (1, 1)]
    assert study.claim() == []


def test_workers_share_what_waits(place):
    base = replace(BASE, {"data.seed": 0})
    first = worker(place, plan(base=base))
    second = worker(place)
    assert len(first.claim()) == 2 and len(second.claim()) == 1


def test_the_first_of_several_workers_leaves_the_others_their_share(place):
    first = worker(place, plan(["optim.lr=1e-3,2e-3,3e-3,4e-3"]))
    first.expected_workers = 4  # the other three are still starting
    assert len(first.claim()) == 1


def test_no_run_is_claimed_twice(place):
    first = worker(place, plan(group=1))
    second = worker(place)
    claimed = [run for _ in range(4) for study in (first, second) for run in study.claim()]
    assert sorted(settings_of(claimed)) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_trials_of_a_worker_that_left_are_queued_again(place):
    first = worker(place, plan())
    lost = first.claim()
    second = worker(place)
    assert second.repair() == []  # the first one lives
    first.heartbeat.stop()
    assert second.repair() == [run.trial.number for run in lost]
    again = [run for _ in range(2) for run in second.claim()]
    assert sorted(settings_of(again)) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_a_silent_worker_on_another_machine_is_given_up_after_the_grace_time(place, monkeypatch):
    first = worker(place, plan())
    lost = first.claim()
    monkeypatch.setattr(liveness, "machine", lambda: "another machine")
    second = worker(place)
    assert second.repair() == []
    monkeypatch.setattr(liveness, "GRACE_S", 0.0)
    assert second.repair() == [run.trial.number for run in lost]


def test_two_observers_queue_a_lost_run_once_in_effect(place):
    first = worker(place, plan(group=1))
    first.claim()
    first.heartbeat.stop()
    second, third = worker(place), worker(place)
    second.queue(0, 0, {"optim.lr": 1e-3})  # as if third had seen the loss at the same moment
    second.repair()
    third.repair()
    claimed = [run for _ in range(8) for study in (second, third) for run in study.claim()]
    assert sorted(settings_of(claimed)) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_a_run_that_keeps_killing_its_worker_is_given_up(place):
    base = plan(["optim.lr=1e-3"])
    worker(place, base).heartbeat.stop()
    for _ in range(study_module.MAX_LOST):
        study = worker(place)
        study.repair()
        assert len(study.claim()) == 1
        study.heartbeat.stop()
    last = worker(place)
    last.repair()
    assert last.claim() == [] and not last.is_busy()
    assert read_runs(last)[0].state == "lost"


def test_failed_runs_stay_failed_and_saved_ones_come_back(place):
    study = worker(place, plan())
    bad, saved = study.claim()
    study.fail(bad.trial, "ValueError: the loss is not finite")
    study.fail(saved.trial, "saved")
    study.repair()
    left = [run for _ in range(3) for run in study.claim()]
    assert sorted(settings_of(left)) == [(0, 1), (1, 0), (1, 1)]
    rows = {(row.setting, row.seed): row for row in read_runs(study)}
    assert rows[0, 0].state == "failed" and "not finite" in rows[0, 0].error


def test_sampled_settings_are_repeated_with_every_seed(place, tmp_path):
    study = worker(place, sampled_plan(tmp_path))
    done = {}
    while runs := study.claim():
        for run in runs:
            done[run.setting, run.seed] = run.changes
            study.complete(run.trial, 50.0 + run.setting)
    assert sorted(done) == [(s, seed) for s in range(3) for seed in (0, 1)]
    assert all(done[s, 0] == done[s, 1] for s in range(3))
    assert len({changes["optim.lr"] for changes in done.values()}) == 3


def test_the_first_sampled_setting_is_the_bases_own(place, tmp_path):
    """Then a sweep always shows what the search gained."""
    study = worker(place, sampled_plan(tmp_path))
    first = study.claim()[0]
    assert first.setting == 0 and first.changes == {"optim.lr": BASE.optim.lr}
    study.heartbeat.stop()
    again = worker(place)
    again.repair()
    assert all(run.changes == first.changes for run in again.claim() if run.setting == 0)


def test_median_pruner_stops_what_loses(place, tmp_path):
    study = worker(place, sampled_plan(tmp_path, trials=12))
    pruned = []
    while runs := study.claim():
        for run in runs:
            score = 10.0 if run.setting == 11 else 90.0 + run.setting
            for epoch in range(BASE.epochs // 5, BASE.epochs // 5 + 3):  # the pruner leaves the first fifth alone
                run.trial.report(score, epoch)
            pruned += [run.setting] if run.trial.should_prune() else []
            study.complete(run.trial, score)
    assert 11 in pruned


def test_winner_is_the_best_mean_over_all_seeds(place):
    study = worker(place, plan(["optim.lr=1e-3,2e-3,3e-3", "seed=0,1"]))
    values = {(0, 0): 90, (0, 1): 70, (1, 0): 85, (1, 1): 85, (2, 0): 99}
    while runs := study.claim():
        for run in runs:
            if (run.setting, run.seed) in values:
                study.complete(run.trial, values[run.setting, run.seed])
            else:
                study.fail(run.trial, "ValueError: diverged")
    rows = by_setting(read_runs(study), 2)
    means = [(row.setting, row.val_score.mean, round(row.val_score.deviation, 3)) for row in rows[1:]]
    assert means == [(1, 85, 0.0), (0, 80, 14.142)]
    assert find_winner(rows).setting == 1  # setting 2 has one seed only
    assert study.optuna.get_trials(states=(TrialState.FAIL,))[0].user_attrs["reason"] == "ValueError: diverged"


def test_a_process_id_that_was_reused_is_not_the_old_worker(monkeypatch):
    record = {"machine": liveness.machine(), "pid": 1, "start": "before", "beat": 3}
    assert not liveness.Observer().is_alive("w", {"worker:w": record})
    alive = SimpleNamespace(**record)
    monkeypatch.setattr(liveness, "process_start", lambda pid: alive.start)
    assert liveness.Observer().is_alive("w", {"worker:w": record})


def test_a_storage_that_is_away_for_a_moment_does_not_end_the_heartbeat(monkeypatch):
    monkeypatch.setattr(liveness, "BEAT_S", 0.01)
    beats, again = [], threading.Event()

    class Flaky:
        def set_user_attr(self, name, record):
            beats.append(record["beat"])
            if record["beat"] == 1:
                raise OSError("connection lost")
            if record["beat"] == 2:
                again.set()

    heartbeat = liveness.Heartbeat(Flaky()).start()
    assert again.wait(30)
    heartbeat.stop()
    assert beats[:3] == [0, 1, 2] and beats[-1] == -1
