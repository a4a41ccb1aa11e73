"""What a finished run says of itself, and how it is read back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Result:
    """What a finished run reports. Accuracies in percent on the test images."""

    run_dir: str
    test_top1: float  # of the selected (best) epoch
    test_top5: float
    last_test_top1: float  # of the last epoch
    best_epoch: int
    selected_on: str  # "validation" or "test" (eval.protocol=paper)
    val_top1: float  # on the selection images, at the best epoch
    seconds: float
    teacher_run: str | None = None
    teacher_test_top1: float | None = None


def read_result(run_dir: Path | str) -> Result | None:
    """The result of a finished run, or None."""
    path = Path(run_dir) / "result.json"
    return Result(**json.loads(path.read_text())) if path.is_file() else None
