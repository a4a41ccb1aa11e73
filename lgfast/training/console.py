"""Show a run's progress on the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator

from tqdm import tqdm

from lgfast.data.batch import Batch, BatchStream
from lgfast.runtime import ranks

LINE_EVERY_S = 60.0  # time between two lines within an epoch, where no terminal shows a bar
MOST_LINES = 400  # about so many epochs of a run get a line


class Pace:
    """Estimates how long a run still takes, from its time since its first step in this process, evaluation included.

    Args:
        total: the number of optimisation steps of the whole run.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._first: tuple[int, float] | None = None  # step and time at the first call; set-up ends there

    def left_s(self, step: int) -> float | None:
        """Return the seconds from the end of this step to the end of the run; None at the first call."""
        now = time.monotonic()
        if self._first is None:
            self._first = step, now
        first, began = self._first
        return (self.total - step) * (now - began) / (step - first) if step > first else None


def duration(seconds: float) -> str:
    """Write a duration, e.g. "40 s", "17 min" or "2 h 05 min"."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def time_left(seconds: float | None) -> str:
    """Return the end of a line, "  17 min left"; return "" where the time is not known or nothing is left."""
    return f"  {duration(seconds)} left" if seconds else ""


def progress_bar(loader: BatchStream, title: str, step: int, pace: Pace, has_lines: bool = True) -> Iterable[Batch]:
    """Pass on the batches of an epoch, with a bar on a terminal and a line once a minute elsewhere.

    Args:
        step: the number of optimisation steps that the run has completed.
        has_lines: False for a run that prints nothing where it shows no bar.
    """
    has_bar = ranks.is_writer() and sys.stderr.isatty()
    batches = paced(loader, title, step, pace, ranks.is_writer() and has_lines and not has_bar)
    return tqdm(batches, title, leave=False, total=len(loader)) if has_bar else batches


def paced(loader: Iterable[Batch], title: str, step: int, pace: Pace, has_lines: bool) -> Iterator[Batch]:
    """Pass on the batches; if asked, print once a minute a line about the run's progress."""
    said = time.monotonic()
    for done, batch in enumerate(loader, step + 1):
        yield batch
        left_s = pace.left_s(done)
        if has_lines and time.monotonic() - said >= LINE_EVERY_S:
            said = time.monotonic()
            print(f"{title}  step {done} of {pace.total}{time_left(left_s)}", flush=True)


def epoch_message(
    name: str, epochs: int, row: dict[str, float], seconds: float, left_s: float | None = None, metric: str = "top1"
) -> str:
    """Return the line about an epoch.

    Args:
        name: the run's name.
        epochs: the number of epochs of the whole run.
        row: the epoch's row of summary.csv.
        seconds: the time that the epoch took.
        left_s: the seconds that the run still takes; None where they are not known.
        metric: the metric that chooses the best epoch.
    """
    val = f"  val {row[f'val_{metric}']:.2f} %" if f"val_{metric}" in row else ""
    named = ((name, row[f"{name}_loss"]) for name in ("guidance", "distill"))
    parts = "".join(f"  {name} {loss:.4f}" for name, loss in named if loss)
    return (
        f"{name}  epoch {row['epoch']}/{epochs}  loss {row['loss']:.4f}"
        f"{parts}  train {row['train_top1']:.2f} %{val}  lr {row['lr']:.2e}  {seconds:.1f} s{time_left(left_s)}"
    )


def has_line(epoch: int, epochs: int) -> bool:
    """Whether an epoch gets a line: all do, but in a run of thousands of short ones every tenth, say, and the last."""
    return epoch % -(-epochs // MOST_LINES) == 0 or epoch == epochs


def guidance_message(name: str, guided: int, epochs: int) -> str:
    """Return a line that says when guidance ended, and how much of its work that saves."""
    return f"{name}  guidance ended after epoch {guided}: {1 - guided / epochs:.0%} of its cost saved"
