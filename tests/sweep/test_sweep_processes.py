"""Sweeps of real processes: joining, SIGKILL, Ctrl-C."""

import csv
import signal
import time
from pathlib import Path

import pytest

from lgfast.config import dump_yaml, replace
from lgfast.sweep.study import Study
from tests.postgres import missing, postgres
from tests.processes import TrainProcess
from tests.runs import tiny_config

pytestmark = pytest.mark.slow

GRID = ["--sweep", "optim.lr=1e-3,4e-3", "--sweep", "seed=0,1"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("base")
    path = tmp_path / "base.yaml"
    changes = {"run_dir": "", "epochs": 10, "data.seed": 0, "eval.every_epochs": 2}
    path.write_text(dump_yaml(replace(tiny_config(tmp_path), changes)))
    return str(path)


@pytest.fixture(params=["journal", "sqlite", "postgres"])
def place(request, tmp_path):
    """Where the study is kept."""
    if request.param == "journal":
        yield str(tmp_path / "study.journal")
    elif request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/study.db"
    elif reason := missing():
        pytest.skip(reason)
    else:
        with postgres() as url:
            yield url


def trials(place):
    study = Study(place, "lgfast")
    if not study.exists():
        return []
    study.join()
    return study.optuna.get_trials(deepcopy=False)


def wait_until_it_reports(place, worker, timeout=200):
    """Until some running trial has a validation accuracy in the study."""
    deadline, file = time.monotonic() + timeout, Path(place.removeprefix("sqlite:///"))
    while time.monotonic() < deadline:
        assert worker.poll() is None, worker.finish()
        is_there = place.startswith("postgres") or file.exists()
        if is_there and any(trial.intermediate_values for trial in trials(place)):
            return
        time.sleep(0.1)
    worker.send(signal.SIGKILL)
    raise AssertionError(f"no trial reported in {timeout} s: {worker.finish()}")


def rows(out):
    with (out / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_second_process_joins_and_takes_over_from_a_killed_one(base, tmp_path, place):
    out = tmp_path / "out"
    first = TrainProcess(tmp_path, "--config", base, *GRID, "--study", place, "--out", str(out))
    wait_until_it_reports(place, first)
    second = TrainProcess(tmp_path, "--study", place, "--out", str(out))
    first.send(signal.SIGKILL)
    assert first.finish()[0] == -signal.SIGKILL
    code, text, err = second.finish()
    assert code == 0, err
    assert [row["state"] for row in rows(out)] == ["complete"] * 4
    assert "best: setting" in text
    lost = [trial for trial in trials(place) if trial.state.name == "FAIL"]
    assert lost and all("reason" not in trial.user_attrs for trial in lost)


def test_processes_that_start_one_sweep_at_the_same_time_share_it(base, tmp_path, place):
    names = ["--study", place, "--out", str(tmp_path / "out")]
    workers = [TrainProcess(tmp_path, "--config", base, *GRID, *names, "--epochs", "2") for _ in range(2)]
    for worker in workers:
        code, text, err = worker.finish()
        assert code == 0, err
        assert "best: setting" in text
    done = [trial.user_attrs for trial in trials(place) if trial.state.name == "COMPLETE"]
    assert sorted((own["setting"], own["seed"]) for own in done) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert {row["state"] for row in rows(tmp_path / "out")} == {"complete"}


def test_ctrl_c_saves_and_resume_with_two_workers_finishes(base, tmp_path):
    out = tmp_path / "out"
    first = TrainProcess(tmp_path, "--config", base, *GRID, "--out", str(out))
    wait_until_it_reports(str(out / "study.journal"), first)
    first.send(signal.SIGINT)
    code, _, err = first.finish()
    assert code == 128 + signal.SIGINT
    assert f"stopped; continue with: python -m lgfast.train --resume {out}" in err
    assert {row["state"] for row in rows(out)} == {"saved"}
    code, text, err = TrainProcess(tmp_path, "--resume", str(out), "--workers", "2").finish()
    assert code == 0, err
    assert [row["state"] for row in rows(out)] == ["complete"] * 4
    assert "best: setting" in text and (out / "workers" / "worker-1.log").is_file()
