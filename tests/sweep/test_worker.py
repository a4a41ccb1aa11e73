"""Workers whose disk fails for a moment, and workers that are thought dead while they only stand still."""

import csv
import dataclasses
import errno
import time
from pathlib import Path

import pytest
from optuna.storages.journal import JournalFileBackend

from lgfast.config import replace
from lgfast.data import read
from lgfast.records.files import WriteError
from lgfast.records.run_log import MetricsLog
from lgfast.runtime.interrupt import InterruptFlag
from lgfast.sweep import liveness, worker
from lgfast.sweep.results import read_runs
from lgfast.sweep.space import read_space
from lgfast.sweep.study import Plan, Study
from lgfast.sweep.worker import Reporter, Worker, may_pass
from tests.runs import metrics, tiny_config


@pytest.fixture
def study(tmp_path):
    """Two runs of three epochs that form one group."""
    base = replace(
        tiny_config(tmp_path),
        {"run_dir": "", "epochs": 3, "eval.every_epochs": 1, "data.seed": 0, "guidance.weight": 0},
    )
    study = Study(str(tmp_path / "study.journal"), "test")
    study.create(Plan(base, read_space(["optim.lr=1e-3,2e-3"], None, base), None, "none", 8))
    study.fill()
    study.announce()
    yield study
    study.heartbeat.stop()


def second(study):
    """Another worker of the study, on another machine as it seems."""
    other = Study(study.secret_place, "test")
    other.join()
    other.announce()
    return other


def work(study, out, on_change=lambda: None):
    Worker(study, out, {}, InterruptFlag(), on_change).work()


def states(study):
    return [run.state for run in read_runs(study)]


PASSING = [errno.EIO, errno.ESTALE, errno.EFBIG, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.ETIMEDOUT, errno.EROFS]


@pytest.mark.parametrize("number", PASSING)
@pytest.mark.parametrize("is_wrapped", [False, True])
def test_an_error_that_may_pass_ends_the_worker_and_no_run(study, tmp_path, monkeypatch, number, is_wrapped):
    def broken(*_):
        try:
            raise OSError(number, "as the system says")
        except OSError as error:
            if is_wrapped:
                raise ValueError("something cannot be read") from error
            raise

    with monkeypatch.context() as patch:
        patch.setattr(worker, "run_group", broken)
        with pytest.raises((OSError, ValueError)):
            work(study, tmp_path)
    assert states(study) == ["saved", "saved"]
    study.repair()
    assert states(study) == ["waiting", "waiting"]


@pytest.mark.parametrize(
    "error", [FileNotFoundError(errno.ENOENT, "gone"), ValueError("diverged"), OSError("no number")]
)
def test_an_error_of_the_runs_own_fails_them(study, tmp_path, monkeypatch, error):
    def broken(*_):
        raise error

    monkeypatch.setattr(worker, "run_group", broken)
    work(study, tmp_path)
    assert states(study) == ["failed", "failed"]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "first"), ValueError("first")])
def test_the_first_error_is_told_though_the_study_is_away_too(study, tmp_path, monkeypatch, error):
    def broken(*_):
        raise error

    def away(*_):
        raise OSError(errno.EIO, "second")

    runs = study.claim()
    with monkeypatch.context() as patch:
        patch.setattr(worker, "run_group", broken)
        patch.setattr(JournalFileBackend, "append_logs", away)
        with pytest.raises(type(error), match="first") as caught:
            Worker(study, tmp_path, {}, InterruptFlag(), lambda: None).run(runs)
        assert may_pass(caught.value)


def test_what_may_pass_is_known_by_its_cause():
    wrapped = ValueError("b")
    wrapped.__cause__ = OSError(errno.EIO, "a")
    assert may_pass(wrapped) and may_pass(WriteError("full"))
    assert not may_pass(ValueError("c")) and not may_pass(OSError(errno.ENOENT, "d"))


@pytest.mark.parametrize("name", ["resume.pt", "model.safetensors"])
def test_a_checkpoint_that_cannot_be_read_for_a_moment_fails_no_trial(study, tmp_path, monkeypatch, name):
    """One lane of a group that goes on meets the error. Both trials are given back, as on a full disk."""
    interrupt = InterruptFlag()

    def stop_after_an_epoch():
        interrupt.requested = any(run.epoch for run in read_runs(study))

    def broken(path, *arguments):
        if Path(path).match(f"001-seed1/checkpoints/*/{name}"):
            raise OSError(errno.EIO, "Input/output error")
        return open(path, *arguments)

    Worker(study, tmp_path, {}, interrupt, stop_after_an_epoch).work()
    assert states(study) == ["saved", "saved"]
    study.repair()
    with monkeypatch.context() as patch:
        patch.setattr(read, "open", broken, raising=False)
        with pytest.raises(OSError, match=rf"{name}: cannot be read \(Input/output error\); it may be sound"):
            work(study, tmp_path)
    assert states(study) == ["saved", "saved"]
    work(study, tmp_path)
    assert states(study) == ["complete", "complete"]


def test_a_worker_that_wakes_up_leaves_its_runs_to_who_took_them(study, tmp_path, monkeypatch, capsys):
    """It stood still for longer than the grace time, between two epochs; the other one ran on from its checkpoint."""
    taken = []

    def stand_still():
        if taken or not any(run.epoch for run in read_runs(study)):
            return
        taken.append(True)
        with monkeypatch.context() as patch:
            patch.setattr(liveness, "machine", lambda: "another machine")
            patch.setattr(liveness, "GRACE_S", -1.0)
            other = second(study)
            other.observer.is_fresh = lambda *_: False
            patch.setattr(other.observer, "is_alive", lambda name, attrs: name == other.heartbeat.id)
            work(other, tmp_path)
            other.heartbeat.stop()

    work(study, tmp_path, stand_still)
    assert taken and "2 runs were given to another worker" in capsys.readouterr().out
    assert states(study) == ["complete", "complete"]
    for run in read_runs(study):
        with open(f"{run.run_dir}/summary.csv") as file:
            assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3"]
        epochs = [row["step"] for row in metrics(run.run_dir) if row["kind"] == "epoch"]
        assert len(epochs) == len(set(epochs)) == 3
        assert run.run_dir.endswith("-2")
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["000-seed1-2", "001-seed1-2"]


def test_epochs_that_are_not_judged_are_told_too(study, tmp_path, monkeypatch):
    """The worker's beats tell them, for the trials of its own group only."""
    monkeypatch.setattr(liveness, "BEAT_S", 0.01)
    study.heartbeat.stop()
    study.announce()
    seen = []

    def look():
        deadline = time.monotonic() + 300
        while study.heartbeat.epochs and time.monotonic() < deadline:
            epochs = [run.epoch for run in read_runs(study)]
            if epochs == [study.heartbeat.epochs.get(str(number), 0) for number in range(2)]:
                seen.append(epochs)
                return

    study.plan = dataclasses.replace(study.plan, base=replace(study.plan.base, {"eval.every_epochs": 3}))
    work(study, tmp_path, look)
    assert [1, 0] in seen and [2, 1] in seen
    assert [(run.epoch, list(run.curve)) for run in read_runs(study)] == [(3, [3]), (3, [3])]


def test_a_run_that_was_killed_at_its_end_keeps_its_curve(study, tmp_path, monkeypatch):
    """The kill comes after its last checkpoint, before its trial is completed."""
    with monkeypatch.context() as patch:
        patch.setattr(Worker, "tell", lambda *_: None)
        Worker(study, tmp_path, {}, InterruptFlag(), lambda: None).run(study.claim())
    study.heartbeat.stop()
    other = second(study)
    work(other, tmp_path)
    other.heartbeat.stop()
    assert [list(run.curve) for run in read_runs(study)] == [[1, 2, 3], [1, 2, 3]]


def test_runs_report_the_metric_that_chooses_their_best_epoch(study, tmp_path):
    run, _ = study.claim()
    config = replace(study.plan.base, {"run_dir": str(tmp_path), "eval.metric": "macro_f1"})
    log = MetricsLog(tmp_path, tensorboard=False)
    reporter = Reporter(study, run, config)
    for epoch, score in ((1, 12.5), (2, 25.0)):
        row = {"epoch": epoch, "val_top1": 90.0, "val_macro_f1": score, "seconds": 1.0}
        log.write_epoch(row)
        reporter.report(row)
    assert not reporter.report({"epoch": 3})
    (shown,) = [row for row in read_runs(study) if row.state == "running" and row.curve]
    assert shown.curve == {1: 12.5, 2: 25.0} and shown.val_score == 25.0
