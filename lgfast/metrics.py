"""Meters that stay on the device, and the files a run writes."""

from __future__ import annotations

import csv
import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lgfast import ranks
from lgfast.reading import Reading


class TrainMeter:
    """Sums over training steps, kept on the device until they are read.

    Columns: loss, cross entropy, guidance and distillation (unweighted), correct, images, steps; one row since the
    last log line (window), one since the start of the epoch. The first step with a non-finite loss is remembered
    (-1: none).
    """

    WINDOW, EPOCH = 0, 1
    COLUMNS = ("loss", "cls_loss", "guidance_loss", "distill_loss", "correct", "images", "steps")

    def __init__(self, device: torch.device | str) -> None:
        self.sums = torch.zeros(2, len(self.COLUMNS), dtype=torch.float64, device=device)
        self.bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        self.step = torch.zeros((), dtype=torch.int64, device=device)

    @torch.no_grad()
    def update(
        self,
        loss: Tensor,
        cls_loss: Tensor,
        guidance_loss: Tensor | None,
        logits: Tensor,
        labels: Tensor,
        distill_loss: Tensor | None = None,
    ) -> None:
        """Add one step. All arguments are on the device; labels [B] are class indices or [B, K] mixed."""
        hard = labels.argmax(1) if labels.ndim == 2 else labels
        correct = (logits.argmax(1) == hard).sum()
        guidance, distill = (torch.zeros_like(loss) if x is None else x for x in (guidance_loss, distill_loss))
        images = torch.full_like(correct, len(logits))
        row = [loss, cls_loss, guidance, distill, correct, images, torch.ones_like(correct)]
        self.sums += torch.stack([value.double() for value in row])
        bad = ~torch.isfinite(loss) & (self.bad_step < 0)
        self.bad_step.copy_(torch.where(bad, self.step, self.bad_step))
        self.step += 1

    def start_read(self, row: int) -> MeterReading:
        """The row's sums as they are now, over all ranks, and the first bad step of any rank."""
        return MeterReading(torch.cat([ranks.total(self.sums[row]), ranks.highest(self.bad_step).double()[None]]))

    def read(self, row: int) -> dict[str, float]:
        return self.start_read(row).means()

    def first_bad_step(self) -> int | None:
        return self.start_read(self.WINDOW).first_bad_step()

    def reset(self, row: int) -> None:
        self.sums[row].zero_()

    def state_dict(self) -> dict[str, Tensor]:
        return {"sums": self.sums.cpu(), "step": self.step.cpu()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.sums.copy_(state["sums"])
        self.step.copy_(state["step"])


class MeterReading(Reading):
    """One row of a TrainMeter; both methods wait for it."""

    def means(self) -> dict[str, float]:
        """Means per step since the row's last reset, and training accuracy in percent."""
        sums = dict(zip(TrainMeter.COLUMNS, self.wait(), strict=False))
        steps, images = max(sums["steps"], 1), max(sums["images"], 1)
        return {
            "loss": sums["loss"] / steps,
            "cls_loss": sums["cls_loss"] / steps,
            "guidance_loss": sums["guidance_loss"] / steps,
            "distill_loss": sums["distill_loss"] / steps,
            "train_top1": 100 * sums["correct"] / images,
        }

    def first_bad_step(self) -> int | None:
        """Index of the first step whose loss was not finite, or None."""
        step = int(self.wait()[-1])
        return None if step < 0 else step


class EvalMeter:
    """Top-1 and top-5 hits and the summed cross entropy, kept on the device."""

    def __init__(self, device: torch.device | str) -> None:
        self.sums = torch.zeros(4, dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add one batch: logits [B, K], labels [B]. Top-5 is capped by the class count."""
        logits = logits.float()
        top = logits.topk(min(5, logits.shape[1]), dim=1).indices
        hits = top == labels[:, None]
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        count = torch.full_like(loss, len(labels))
        self.sums += torch.stack([v.double() for v in (hits[:, 0].sum(), hits.any(1).sum(), loss, count)])

    def read(self) -> dict[str, float]:
        top1, top5, loss, count = ranks.total(self.sums).tolist()  # sync: once per evaluation
        if count == 0:
            raise ValueError("evaluation saw no image; check data.test_limit and the dataset's test split")
        return {"top1": 100 * top1 / count, "top5": 100 * top5 / count, "loss": loss / count, "images": int(count)}


EPOCH_COLUMNS = (
    "epoch", "lr", "loss", "cls_loss", "guidance_loss", "distill_loss", "train_top1", "val_top1", "val_top5",
    "val_loss", "seconds",
)  # fmt: skip


class MetricsLog:
    """metrics.jsonl (one object per line), summary.csv (one row per epoch), TensorBoard events where installed.

    Args:
        run_dir: the run's folder.
        tensorboard: write events if the package is installed.
    """

    def __init__(self, run_dir: Path, tensorboard: bool = True) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        self.jsonl, self.csv = run_dir / "metrics.jsonl", run_dir / "summary.csv"
        self._writer = summary_writer(run_dir) if tensorboard else None

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Append one line; non-finite numbers become null, which JSON can hold."""
        row = {"kind": kind, "step": step} | {k: finite_or_none(v) for k, v in values.items()}
        with self.jsonl.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if self._writer is not None:
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self._writer.add_scalar(f"{kind}/{name}", value, step)

    def write_epoch(self, row: dict[str, Any]) -> None:
        """Append one row; columns that an epoch does not have (no evaluation) stay empty."""
        is_new = not self.csv.exists()
        with self.csv.open("a", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=EPOCH_COLUMNS, lineterminator="\n")
            if is_new:
                writer.writeheader()
            writer.writerow(row)

    def position(self) -> dict[str, int]:
        """Sizes in bytes, stored in a checkpoint so that a resumed run drops what was written after it."""
        return {path.name: path.stat().st_size if path.exists() else 0 for path in (self.jsonl, self.csv)}

    def rewind(self, position: dict[str, int]) -> None:
        for path in (self.jsonl, self.csv):
            if path.exists():
                os.truncate(path, min(position[path.name], path.stat().st_size))
                if path.stat().st_size == 0:
                    path.unlink()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def read_curve(run_dir: Path) -> tuple[list[int], list[float]]:
    """Epochs at which a run was evaluated, and its accuracy there (percent, selection images)."""
    with (run_dir / "summary.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["val_top1"]]
    return [int(row["epoch"]) for row in rows], [float(row["val_top1"]) for row in rows]


class SilentLog:
    """In place of a MetricsLog on ranks that write nothing."""

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        pass

    def write_epoch(self, row: dict[str, Any]) -> None:
        pass

    def position(self) -> dict[str, int]:
        return {}

    def rewind(self, position: dict[str, int]) -> None:
        pass

    def close(self) -> None:
        pass


def finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def summary_writer(run_dir: Path) -> Any:
    """TensorBoard writer, or None where the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(run_dir / "tensorboard"))
