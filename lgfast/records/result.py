"""Write the result of a finished run, and read it back."""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from lgfast.runtime.printable import printable

MAX_NAMED = 3  # the most classes that a verdict names


@dataclass(frozen=True)
class Result:
    """The figures of a finished run. Accuracies are in percent, on the test images."""

    run_dir: str
    test_top1: float  # the selected (best) epoch's
    test_top5: float
    last_test_top1: float  # the last epoch's
    best_epoch: int
    selected_on: str  # "validation" or "test" (eval.protocol=paper)
    val_top1: float  # the best epoch's, on the selection images
    seconds: float
    teacher_run: str | None = None
    teacher_test_top1: float | None = None
    guided_epochs: int | None = None  # guidance ended after these; None: it did not end
    metric: str = "top1"  # the metric that chose the epoch
    val_score: float | None = None  # the best epoch's score by `metric`, on the selection images
    class_top1: dict | None = None  # class -> test_top1 on its images, for classes that have some
    test_map: float | None = None  # mean average precision, where images may have several classes

    def verdict(self) -> str:
        """Return a line that compares the student with its teacher, and names its worst classes."""
        text = "" if self.test_map is None else f"mean average precision {self.test_map:.2f} %; top-1: "
        text += f"student {self.test_top1:.2f} %"
        if self.teacher_test_top1 is not None:
            points = self.test_top1 - self.teacher_test_top1
            stands = f"{abs(points):.2f} points {'ahead' if points > 0 else 'behind'}" if points else "as good"
            text += f", its teacher {self.teacher_test_top1:.2f} %: {stands}"
        below = [(top1, name) for name, top1 in (self.class_top1 or {}).items() if top1 < self.test_top1]
        worst = ", ".join(f"{printable(name)} {top1:.0f} %" for top1, name in sorted(below)[:MAX_NAMED])
        return text + (f"; worst classes: {worst}" if worst else "")


def read_result(run_dir: Path | str) -> Result | None:
    """Read the result of a finished run; return None where there is none.

    Raises:
        ValueError: the file is damaged, lacks a figure or holds an unknown one; the message names it.
    """
    path = Path(run_dir) / "result.json"
    if not path.is_file():
        return None
    try:
        return Result(**checked(json.loads(path.read_text())))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); delete it and test the run anew with: "
            f"python -m lgfast.train --resume {path.parent}"
        ) from None


def checked(tree: Any) -> dict[str, Any]:
    """Check the figures of a file; raise a ValueError where one is missing or of another type."""
    if not isinstance(tree, dict):
        raise ValueError(f"expected a mapping of figures, got {type(tree).__name__}")
    hints, defaults = get_type_hints(Result), {field.name for field in fields(Result) if field.default is not MISSING}
    if unknown := sorted(tree.keys() - hints.keys()):
        raise ValueError(f"unknown figure {unknown[0]!r}")
    for name, hint in hints.items():
        if name not in tree.keys() | defaults:
            raise ValueError(f"{name} is missing")
        value = tree.get(name)
        value = float(value) if type(value) is int and not isinstance(value, hint) else value
        if name in tree and not isinstance(value, hint):
            raise ValueError(f"{name}: expected {getattr(hint, '__name__', hint)}, got {tree[name]!r}")
    return tree
