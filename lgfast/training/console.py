"""What a run shows on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from tqdm import tqdm

from lgfast.data.batch import Batch
from lgfast.data.epoch_loader import EpochLoader
from lgfast.runtime import ranks


def progress_bar(loader: EpochLoader, title: str) -> Iterable[Batch]:
    """The batches of an epoch, with a bar on a terminal; nothing in a file."""
    is_shown = sys.stderr.isatty() and ranks.is_writer()
    return tqdm(loader, title, leave=False, disable=not is_shown, total=len(loader))


def epoch_message(name: str, epochs: int, row: dict[str, float], seconds: float) -> str:
    """One line.

    Args:
        name: of the run.
        epochs: of the whole run.
        row: of summary.csv.
        seconds: that the epoch took.
    """
    val = f"  val {row['val_top1']:.2f} %" if "val_top1" in row else ""
    named = ((name, row[f"{name}_loss"]) for name in ("guidance", "distill"))
    parts = "".join(f"  {name} {loss:.4f}" for name, loss in named if loss)
    return (
        f"{name}  epoch {row['epoch']}/{epochs}  loss {row['loss']:.4f}"
        f"{parts}  train {row['train_top1']:.2f} %{val}  lr {row['lr']:.2e}  {seconds:.1f} s"
    )
