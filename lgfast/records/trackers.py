"""Pass a run's scalars on to W&B, MLflow or trackio where the configuration asks for it.

A tracker that fails gives one warning and gets nothing more; the run goes on. A resumed run continues the tracker's
run, whose id RUN/tracker.json keeps.
"""

from __future__ import annotations

import json
import os
import time
import uuid
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from lgfast.records.files import write_text

FILE = "tracker.json"
PROJECT = "lgfast"  # the tracker's own environment variable overrides it
Values = Mapping[str, Any]


class Tracker(Protocol):
    """A receiver of a log's scalars."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class WandbTracker:
    """A run of Weights & Biases; WANDB_MODE=offline writes only to the run's folder."""

    def __init__(self, run_dir: Path, config: Values, run_id: str | None) -> None:
        import wandb

        self.id = run_id or uuid.uuid4().hex[:12]
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run_dir.name,
            id=self.id,
            resume="allow",
            dir=str(run_dir),
            config=dict(config),
            reinit="create_new",
        )
        self.run.define_metric("*", step_metric="step")  # W&B's own steps cannot go back, as a resumed run's do

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        self.run.log({"step": step, **scalars})

    def close(self) -> None:
        self.run.finish()


class MlflowTracker:
    """A run of MLflow, at MLFLOW_TRACKING_URI."""

    def __init__(self, run_dir: Path, config: Values, run_id: str | None) -> None:
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self.client, self._metric = MlflowClient(), Metric
        if run_id is not None:
            self.id = run_id
            self.client.update_run(self.id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self.client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self.client.create_experiment(name)
        self.id = self.client.create_run(experiment_id, run_name=run_dir.name).info.run_id
        params = [Param(key, str(value)[:500]) for key, value in config.items()]
        for start in range(0, len(params), 100):  # the most that a call takes
            self.client.log_batch(self.id, params=params[start : start + 100])

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        self.client.log_batch(self.id, [self._metric(name, value, now, step) for name, value in scalars.items()])

    def close(self) -> None:
        self.client.set_terminated(self.id)


class TrackioTracker:
    """A run of trackio, which identifies runs by their names."""

    def __init__(self, run_dir: Path, config: Values, run_id: str | None) -> None:
        import trackio

        self.id = run_id or f"{run_dir.name}-{uuid.uuid4().hex[:6]}"
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        # embed: in a notebook it would start a web server
        self.run = trackio.init(project=project, name=self.id, config=dict(config), resume="allow", embed=False)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        self.run.log(dict(scalars), step=step)

    def close(self) -> None:
        self.run.finish()


KINDS: dict[str, Callable[[Path, Values, str | None], Any]] = {
    "wandb": WandbTracker,
    "mlflow": MlflowTracker,
    "trackio": TrackioTracker,
}


class SafeTracker:
    """A tracker that opens when it is first written to, and whose failures are one warning.

    Args:
        kind: a name of KINDS.
        run_dir: the run's folder, whose tracker.json keeps the id.
        config: dotted keys and values for the tracker to show.
    """

    def __init__(self, kind: str, run_dir: Path, config: Values) -> None:
        self.kind, self.run_dir, self.config = kind, run_dir, config
        self._tracker: Tracker | None = None
        self._is_given_up = False

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        def pass_on() -> None:
            if self._tracker is None:
                self._tracker = self._open()
            self._tracker.write(step, scalars)

        self._try(pass_on)

    def close(self) -> None:
        if self._tracker is not None:
            self._try(self._tracker.close)
            self._tracker = None

    def _open(self) -> Tracker:
        path = self.run_dir / FILE
        known = json.loads(path.read_text()) if path.is_file() else {}
        tracker = KINDS[self.kind](self.run_dir, self.config, known.get(self.kind))
        write_text(path, json.dumps(known | {self.kind: tracker.id}) + "\n")
        return tracker

    def _try(self, action: Callable[[], None]) -> None:
        if self._is_given_up:
            return
        try:
            action()
        except Exception as error:  # a service, a network or a package may raise anything
            self._is_given_up = True
            reason = f"pip install {self.kind}" if isinstance(error, ImportError) else (str(error) or repr(error))
            warnings.warn(
                f"log.tracker: {self.kind} is told nothing more: {' '.join(reason.split())[:300]}; the run goes on, "
                "and its metrics.jsonl holds the same numbers",
                stacklevel=2,
            )
