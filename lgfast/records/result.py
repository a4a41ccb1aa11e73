"""The result of a finished run, written and read back."""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from lgfast.runtime.printable import printable

MAX_NAMED = 3  # classes in a verdict


@dataclass(frozen=True)
class Result:
    """The figures of a finished run. Accuracies in percent on the test images."""

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
    guided_epochs: int | None = None  # after which guidance ended; None: it did not
    metric: str = "top1"  # that chose the epoch
    val_score: float | None = None  # by it, on the selection images, at the best epoch
    class_top1: dict | None = None  # class -> test_top1 of its images, where it has some

    def verdict(self) -> str:
        """A line that compares the student with its teacher, and names the classes that it knows least."""
        text = f"student {self.test_top1:.2f} %"
        if self.teacher_test_top1 is not None:
            points = self.test_top1 - self.teacher_test_top1
            stands = f"{abs(points):.2f} points {'ahead' if points > 0 else 'behind'}" if points else "as good"
            text += f", its teacher {self.teacher_test_top1:.2f} %: {stands}"
        below = [(top1, name) for name, top1 in (self.class_top1 or {}).items() if top1 < self.test_top1]
        worst = ", ".join(f"{printable(name)} {top1:.0f} %" for top1, name in sorted(below)[:MAX_NAMED])
        return text + (f"; worst classes: {worst}" if worst else "")


def read_result(run_dir: Path | str) -> Result | None:
    """The result of a finished run, or None.

    Raises:
        ValueError: the file is damaged, lacks a figure or holds one that is unknown; it is named.
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
    """The figures of a file; raise a ValueError where one is missing or not of its kind."""
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
