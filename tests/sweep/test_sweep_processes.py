"""Real processes on one study: joining, SIGKILL, Ctrl-C."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lgfast.config import dump_yaml, replace
from lgfast.sweep.study import Study
from tests.runs import tiny_config

GRID = ["--sweep", "optim.lr=1e-3,4e-3", "--sweep", "seed=0,1"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("base")
    path = tmp_path / "base.yaml"
    changes = {"run_dir": "", "epochs": 14, "data.seed": 0, "eval.every_epochs": 2, "log.save_every_epochs": 2}
    path.write_text(dump_yaml(replace(tiny_config(tmp_path), changes)))
    return str(path)


def process(*arguments):
    command = [sys.executable, "-m", "lgfast.train", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes)


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
        assert worker.poll() is None, worker.communicate()
        if file.exists() and any(trial.intermediate_values for trial in trials(place)):
            return
        time.sleep(0.2)
    worker.kill()
    raise AssertionError(f"no trial reported in {timeout} s: {worker.communicate()}")


def finish(worker, timeout=300):
    out, err = worker.communicate(timeout=timeout)
    return worker.returncode, out, err


def rows(out):
    with (out / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_a_second_process_joins_and_takes_over_from_a_killed_one(base, tmp_path, kind):
    out = tmp_path / "out"
    place = str(out / "study.journal") if kind == "journal" else f"sqlite:///{tmp_path}/study.db"
    first = process("--config", base, *GRID, "--study", place, "--out", str(out))
    wait_until_it_reports(place, first)
    second = process("--study", place, "--out", str(out))
    first.kill()
    assert finish(first)[0] == -signal.SIGKILL
    code, text, err = finish(second)
    assert code == 0, err
    assert [row["state"] for row in rows(out)] == ["complete"] * 4
    assert "best: setting" in text
    lost = [trial for trial in trials(place) if trial.state.name == "FAIL"]
    assert lost and all("reason" not in trial.user_attrs for trial in lost)


def test_ctrl_c_saves_and_resume_with_two_workers_finishes(base, tmp_path):
    out = tmp_path / "out"
    first = process("--config", base, *GRID, "--out", str(out))
    wait_until_it_reports(str(out / "study.journal"), first)
    first.send_signal(signal.SIGINT)
    code, _, err = finish(first)
    assert code == 128 + signal.SIGINT
    assert f"stopped; continue with: python -m lgfast.train --resume {out}" in err
    assert {row["state"] for row in rows(out)} == {"saved"}
    code, text, err = finish(process("--resume", str(out), "--workers", "2"))
    assert code == 0, err
    assert [row["state"] for row in rows(out)] == ["complete"] * 4
    assert "best: setting" in text and (out / "workers" / "worker-1.log").is_file()
