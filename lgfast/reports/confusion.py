"""Draw the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np

from lgfast.runtime.printable import printable

MAX_COUNTS, MAX_NAMES = 20, 110  # with at most so many classes, cells show their number, and axes their names
NAME = 24  # characters of a class name


def draw_confusion(confusion: np.ndarray, class_names: Sequence[str], file: BinaryIO) -> None:
    """Write a PNG: rows are true classes, columns predicted ones, shades the share of the row.

    Args:
        confusion: [K, K] counts.
    Raises:
        ImportError: matplotlib is missing.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = len(class_names)
    inches = float(np.clip(2.5 + 0.32 * size, 5, 14))
    figure = Figure(figsize=(inches + 1, inches), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shares = 100 * confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(image, ax=axes, label="share of the class's images (%)", shrink=0.8)
    axes.set(xlabel="named", ylabel="true class")
    if size <= MAX_NAMES:
        font: dict[str, Any] = {"fontsize": float(np.clip(700 / size / 1.6, 4, 9)), "parse_math": False}
        names = [shown(name) for name in class_names]
        axes.set_xticks(range(size), names, rotation=90, **font)
        axes.set_yticks(range(size), names, **font)
    if size <= MAX_COUNTS:
        for row, column in np.argwhere(confusion > 0):
            colour = "white" if shares[row, column] > 55 else "0.15"
            axes.text(column, row, str(confusion[row, column]), ha="center", va="center", color=colour, fontsize=8)
    figure.savefig(file, dpi=120)


def shown(name: str) -> str:
    name = printable(name)
    return name if len(name) <= NAME else f"{name[: NAME - 1]}\N{HORIZONTAL ELLIPSIS}"
