"""Draw accuracy by epoch for all commands: axes fitted to the data, names below the curves."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from lgfast.runtime.printable import printable

Curve = tuple[Sequence[int], Sequence[float]]  # the epochs that were judged, and their accuracy (percent)

COLUMNS = 3  # the number of panels side by side
LABEL = 100  # the most characters of a name on one line
OTHERS = "0.75"  # the colour of curves in the background
PALETTE = [f"C{number}" for number in (0, 1, 2, 3, 4, 5, 6, 8, 9)]  # matplotlib's, without its grey


@dataclass(frozen=True)
class Curves:
    """Runs with one name and one colour: thin lines, and their mean as a thick one.

    `stopped` are numbers of runs that ended early, which get a cross at their end.
    """

    label: str
    runs: Sequence[Curve]
    color: str
    has_mean: bool = True
    stopped: frozenset[int] = frozenset()


def colors(count: int) -> list[str]:
    """Return a colour for each group; where colours run out, the rest gets the background's."""
    return [*PALETTE[:count], *[OTHERS] * (count - len(PALETTE))]


def write_curves(panels: Mapping[str, Sequence[Curves]], path: Path, what: str) -> Path:
    """Draw the curves and save them; the path's suffix chooses PNG, SVG or PDF.

    Args:
        panels: the curves of each panel, by its title.
        what: the name of the accuracy on the axis.
    Raises:
        ImportError: matplotlib is missing.
        ValueError: the suffix names no kind of picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = draw(panels, what)
    try:
        figure.savefig(path, dpi=120)
    finally:
        pyplot.close(figure)
    return path


def draw(panels: Mapping[str, Sequence[Curves]], what: str) -> Any:
    """Draw the figure; every panel has the same scale."""
    from matplotlib import pyplot, rc_context, ticker

    shown = {name_of(group): group.color for groups in panels.values() for group in groups}
    labels = [textwrap.fill(printable(name), LABEL) for name in shown]
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    size = (8 if columns == 1 else 4.6 * columns, 4.2 * rows + 0.2 * sum(text.count("\n") + 1 for text in labels))
    with rc_context({"text.parse_math": False}):  # a dollar sign in a name is a dollar sign
        figure, grid = pyplot.subplots(
            rows, columns, figsize=size, squeeze=False, sharex=True, sharey=True, layout="constrained"
        )
        for axes, (title, members) in zip(grid.flat, panels.items(), strict=False):
            for group in members:
                draw_group(axes, group)
            axes.set_title(title)
            axes.grid(alpha=0.3)
            axes.set_xlabel("epoch")
            axes.tick_params(labelbottom=True)  # the panel below may be missing
            axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, min_n_ticks=1))
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_axis_off()
        for axes in grid[:, 0]:
            axes.set_ylabel(what)
        add_legend(figure, labels, list(shown.values()), any(g.stopped for groups in panels.values() for g in groups))
    return figure


def add_legend(figure: Any, labels: list[str], colors: Sequence[str], is_any_stopped: bool) -> None:
    """Put the legend below the panels, where it hides no curve."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=color, linewidth=2.5) for color in colors]
    if is_any_stopped:
        handles.append(Line2D([], [], color="0.4", marker="x", linestyle=""))
        labels = [*labels, "stopped early"]
    look = {"fontsize": "small", "frameon": False, "alignment": "left", "handlelength": 1.5}
    figure.legend(handles, labels, loc="outside lower left", **look)


def name_of(group: Curves) -> str:
    return "others" if group.color == OTHERS else group.label


def draw_group(axes: Any, group: Curves) -> None:
    is_single = len(group.runs) == 1 or not group.has_mean
    order = 1 if group.color == OTHERS else 2
    for number, (epochs, accuracies) in enumerate(group.runs):
        marker = "x" if number in group.stopped else "o" if len(epochs) == 1 else None
        style = {"marker": marker, "markevery": [-1], "markersize": 5} if epochs and marker else {}
        look = {"linewidth": 1.5, "alpha": 1.0} if is_single else {"linewidth": 1.0, "alpha": 0.35}
        axes.plot(epochs, accuracies, color=group.color, zorder=order, **look, **style)
    if not is_single and (means := mean_curve(group.runs))[0]:
        axes.plot(*means, color=group.color, linewidth=2.5, zorder=order + 1)


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Average over the runs, at the epochs in which every run was judged."""
    values = [dict(zip(*curve, strict=True)) for curve in curves]
    common = sorted(set.intersection(*(set(of_run) for of_run in values))) if values else []
    return common, [mean(of_run[epoch] for of_run in values) for epoch in common]
