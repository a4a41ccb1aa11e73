"""Save a run so that it continues exactly, and the weights of its best and last epoch."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lgfast.data.batch import BatchStream
from lgfast.records.checkpoint import CheckpointStore, load_weights, read_metadata, save_weights
from lgfast.records.run_config import check_same_run
from lgfast.runtime import ranks
from lgfast.step import TrainStep


@dataclass
class Progress:
    """How far a run is; every checkpoint holds it."""

    epoch: int = 0  # completed epochs
    step: int = 0  # completed optimisation steps
    best_score: float = -1.0  # the best epoch's score by eval.metric
    best_top1: float = -1.0  # the same epoch's top-1
    best_epoch: int = -1
    guidance_losses: list[float] = field(
        default_factory=list
    )  # means of the guided epochs, where a rule may end guidance
    guided_epochs: int | None = None  # the number of epochs after which guidance ended; None: it has not


class RunSaver:
    """Writes the weights and checkpoints of a run, on the first rank.

    Args:
        run_dir: the run's folder.
        step, loader: the objects whose state is saved; the step holds the student.
        metadata: entries for every weights file (model, class names, data set).
        keep: the number of newest checkpoints that stay.
    """

    def __init__(
        self, run_dir: Path, step: TrainStep, loader: BatchStream, metadata: dict[str, Any], keep: int
    ) -> None:
        self.run_dir, self.step, self.loader, self.metadata = run_dir, step, loader, metadata
        self.student, self.store = step.student, CheckpointStore(run_dir, keep)
        self.device = next(self.student.parameters()).device
        self._best: tuple[dict[str, Tensor], dict[str, Any]] | None = None  # weights and metadata to be written
        self._saved_at = time.monotonic()

    def age_s(self) -> float:
        """Return the seconds since the last checkpoint, or since the run began."""
        return time.monotonic() - self._saved_at

    def newest(self) -> Path | None:
        """Return the last checkpoint's folder; None where there is none."""
        return next(reversed(self.store.all()), None)

    def keep_best(self, progress: Progress) -> None:
        """Keep the present weights until the next checkpoint, so that all files of a folder are of one time."""
        weights = {name: tensor.detach().clone() for name, tensor in self.step.model.state_dict().items()}
        self._best = weights, self.weights_metadata(progress)

    def write_best(self) -> None:
        """Write the kept weights, if there are any."""
        if self._best is not None and ranks.is_writer():
            save_weights(self.run_dir / "best.safetensors", *self._best)
        self._best = None

    def write_last(self, progress: Progress) -> None:
        """Write the present weights."""
        if ranks.is_writer():
            weights = self.step.model.state_dict()
            save_weights(self.run_dir / "last.safetensors", weights, self.weights_metadata(progress))

    def save(self, progress: Progress, log_position: dict[str, int]) -> Path:
        """Write a checkpoint, and the best weights with it.

        Args:
            log_position: the log is cut to it when the run continues from here.
        """
        state = {
            "progress": dataclasses.asdict(progress),
            "guidance": self.student.guidance.state_dict() if self.student.guidance else {},
            **self.step.state_dict(),
            "loader": self.loader.state_dict(),
            "ranks": ranks.gather(self.rank_state()),
            "log_position": log_position,
            "content_hash": self.metadata["content_hash"],
        }
        self._saved_at = time.monotonic()
        if not ranks.is_writer():
            return self.store.path(progress.step)
        self.write_best()
        return self.store.save(progress.step, self.student.model, self.weights_metadata(progress), state)

    def resume(self) -> tuple[Progress, dict[str, int]] | None:
        """Load the newest checkpoint and return its progress and log position; return None where there is no
        checkpoint."""
        found = self.store.load_newest()
        if found is None:
            return None
        weights, state = found
        if state["content_hash"] != self.metadata["content_hash"]:
            raise ValueError(
                f"{self.run_dir}: the training images changed since this run was saved; restore them or start a new run"
            )
        newest = self.store.all()[-1] / "model.safetensors"
        check_same_run(self.metadata["config"], read_metadata(newest).get("config", {}), newest)
        load_weights(self.student.model, weights, self.run_dir)
        if self.student.guidance:
            self.student.guidance.load_state_dict(state["guidance"])
        self.step.load_state_dict(state)
        self.loader.load_state_dict(state["loader"])
        self.load_rank_state(state["ranks"])
        progress = {"best_score": state["progress"]["best_top1"]} | state["progress"]  # older files hold only top-1
        return Progress(**progress), state["log_position"]

    def rank_state(self) -> dict[str, Any]:
        """Return the state that differs by rank: the sums of its meters and its random numbers."""
        cuda_rng = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        return {"meter": self.step.meter.state_dict(), "torch_rng": torch.get_rng_state(), "cuda_rng": cuda_rng}

    def load_rank_state(self, states: list[dict[str, Any]]) -> None:
        """Continue from this rank's state. Where the number of ranks changed, each keeps the random numbers it began
        with."""
        if len(states) != ranks.world():
            return
        own = states[ranks.rank()]
        self.step.meter.load_state_dict(own["meter"])
        torch.set_rng_state(own["torch_rng"])
        if own["cuda_rng"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(own["cuda_rng"], self.device)

    def weights_metadata(self, progress: Progress) -> dict[str, Any]:
        return self.metadata | dataclasses.asdict(progress)


class SilentSaver:
    """Replaces a RunSaver in a loop that writes no files."""

    def age_s(self) -> float:
        return 0.0

    def newest(self) -> Path | None:
        return None

    def keep_best(self, progress: Progress) -> None:
        pass

    def write_best(self) -> None:
        pass

    def write_last(self, progress: Progress) -> None:
        pass

    def save(self, progress: Progress, log_position: dict[str, int]) -> Path:
        return Path()

    def resume(self) -> tuple[Progress, dict[str, int]] | None:
        return None
