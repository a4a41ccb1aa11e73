"""Trackers get every scalar under one id across a resume, and none of their faults ends a run."""

import json
import sys
import types
import warnings
from typing import ClassVar

import pytest

from lgfast.assembly.run import train_run
from lgfast.records.trackers import FILE, SafeTracker
from tests.runs import metrics, small_loop, tiny_config

UNGUIDED = {"guidance.weight": 0, "augment.teacher_size": 0, "eval.every_epochs": 1, "epochs": 2}


class FakeRun:
    """Stands for a run of W&B or trackio."""

    def __init__(self, options):
        self.options, self.rows, self.is_finished = options, [], False

    def define_metric(self, name, step_metric):
        assert (name, step_metric) == ("*", "step")

    def log(self, values, step=None):
        self.rows.append(values if step is None else values | {"step": step})

    def finish(self):
        self.is_finished = True


class FakeClient:
    """Stands for MLflow's client: runs by id, with their states and rows."""

    runs: ClassVar[dict[str, FakeRun]] = {}

    def get_experiment_by_name(self, name):
        return None

    def create_experiment(self, name):
        return "7"

    def create_run(self, experiment, run_name):
        assert experiment == "7"
        self.runs["m1"] = FakeRun({"name": run_name})
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id="m1"))

    def update_run(self, run_id, status):
        assert status == "RUNNING"
        self.runs[run_id].is_finished = False

    def log_batch(self, run_id, metrics=(), params=()):
        self.runs[run_id].options |= {param[0]: param[1] for param in params}
        if metrics:
            self.runs[run_id].rows.append({metric[0]: metric[1] for metric in metrics} | {"step": metrics[0][3]})

    def set_terminated(self, run_id):
        self.runs[run_id].is_finished = True


@pytest.fixture(params=["wandb", "trackio", "mlflow"])
def tracked(request, monkeypatch):
    """(kind, the runs that its package was asked for)."""
    runs = []

    def init(**options):
        runs.append(FakeRun(options))
        return runs[-1]

    if request.param == "mlflow":
        FakeClient.runs = {}
        entities = types.SimpleNamespace(Metric=lambda *values: values, Param=lambda *values: values)
        monkeypatch.setitem(sys.modules, "mlflow", types.ModuleType("mlflow"))
        monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
        monkeypatch.setitem(sys.modules, "mlflow.tracking", types.SimpleNamespace(MlflowClient=FakeClient))
        return request.param, lambda: list(FakeClient.runs.values())
    monkeypatch.setitem(sys.modules, request.param, types.SimpleNamespace(init=init))
    return request.param, lambda: runs


def expected_rows(run_dir):
    """Return the rows of metrics.jsonl without times."""
    rows = []
    for row in metrics(run_dir):
        kind, step = row.pop("kind"), row.pop("step")
        rows.append({f"{kind}/{name}": value for name, value in row.items() if value is not None} | {"step": step})
    return rows


def without_clock(rows):
    return [
        {name: value for name, value in row.items() if "seconds" not in name and "per_s" not in name} for row in rows
    ]


def test_a_tracker_gets_what_the_log_has_and_the_configuration(tmp_path, tracked):
    kind, runs = tracked
    config = tiny_config(tmp_path, **UNGUIDED | {"log.tracker": kind})
    train_run(config)
    (run,) = runs()
    assert without_clock(run.rows) == expected_rows(config.run_dir) and run.is_finished
    told = run.options.get("config", run.options)
    assert str(told["optim.lr"]) == str(config.optim.lr)
    assert kind == "mlflow" or run.options["name"].startswith("run")


def test_a_resumed_run_goes_on_under_its_id(tmp_path, tracked):
    kind, runs = tracked
    config = tiny_config(tmp_path, **UNGUIDED | {"log.tracker": kind})
    loop = small_loop(config)
    loop.on_epoch = lambda lane, row: True
    loop.run()
    known = json.loads((tmp_path / "run" / FILE).read_text())
    train_run(config, resume=True)
    assert json.loads((tmp_path / "run" / FILE).read_text()) == known
    if kind == "mlflow":
        assert len(runs()) == 1
    else:
        name = {"wandb": "id", "trackio": "name"}[kind]
        assert [run.options[name] for run in runs()] == [known[kind]] * 2
        assert all(run.options["resume"] == "allow" for run in runs())
    assert without_clock(row for run in runs() for row in run.rows) == expected_rows(config.run_dir)


@pytest.mark.parametrize("fault", ["init", "log", "finish", "missing"])
def test_a_tracker_that_fails_is_one_warning_and_the_run_is_the_same(tmp_path, monkeypatch, fault):
    def fail(*_, **__):
        raise RuntimeError("no\nnetwork")

    run = FakeRun({})
    module = types.SimpleNamespace(init=lambda **options: run)
    if fault == "init":
        module.init = fail
    elif fault != "missing":
        monkeypatch.setattr(run, fault, fail)
    monkeypatch.setitem(sys.modules, "wandb", None if fault == "missing" else module)
    config = tiny_config(tmp_path, **UNGUIDED | {"log.tracker": "wandb"})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = train_run(config)
    said = [str(warning.message) for warning in caught if "log.tracker" in str(warning.message)]
    reason = "pip install wandb" if fault == "missing" else "no network"
    assert len(said) == 1 and said[0].startswith(f"log.tracker: wandb is told nothing more: {reason}; the run goes on")
    plain = train_run(tiny_config(tmp_path, **UNGUIDED | {"run_dir": str(tmp_path / "plain")}))
    assert result.test_top1 == plain.test_top1 and metrics(config.run_dir) == metrics(tmp_path / "plain")


def test_mlflow_itself_keeps_the_scalars(tmp_path, monkeypatch):
    """MLflow writes to a folder, without a server."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_tracking_uri(None)
    for step in (1, 2):  # the second time resumed
        tracker = SafeTracker("mlflow", tmp_path, {"optim.lr": 1e-3})
        tracker.write(step, {"train/loss": 1.0 / step})
        tracker.close()
    run_id = json.loads((tmp_path / FILE).read_text())["mlflow"]
    history = mlflow.MlflowClient().get_metric_history(run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 0.5)]
    assert mlflow.MlflowClient().get_run(run_id).data.params == {"optim.lr": "0.001"}


def test_wandb_itself_writes_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for step in (1, 2):
            tracker = SafeTracker("wandb", tmp_path, {"optim.lr": 1e-3})
            tracker.write(step, {"train/loss": 1.0})
            tracker.close()
    run_id = json.loads((tmp_path / FILE).read_text())["wandb"]
    assert len(list(tmp_path.glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb"))) >= 1


def test_trackio_itself_keeps_the_scalars(tmp_path, monkeypatch):
    """trackio writes to a folder, without a server."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # it reads this once, at its import
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for step in (1, 2):  # the second time resumed
            tracker = SafeTracker("trackio", tmp_path, {"optim.lr": 1e-3})
            tracker.write(step, {"train/loss": 1.0 / step})
            tracker.close()
    name = json.loads((tmp_path / FILE).read_text())["trackio"]
    assert SQLiteStorage.get_runs("lgfast") == [name]
    assert [(row["step"], row["train/loss"]) for row in SQLiteStorage.get_logs("lgfast", name)] == [(1, 1.0), (2, 0.5)]
    assert SQLiteStorage.get_run_config("lgfast", name)["optim.lr"] == 1e-3
