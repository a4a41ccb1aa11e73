"""Draw the plots of a sweep as PNGs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from lgfast.reports.curves import OTHERS, PALETTE, Curves, write_curves
from lgfast.reports.table import shorten
from lgfast.sweep.importance import Importance
from lgfast.sweep.results import RunRow, SettingRow
from lgfast.sweep.space import Axis
from lgfast.sweep.table import describe, show

SHOWN = 5  # settings with a color and a name in the plot of the curves
MISSING = -0.15  # height of settings without a key, below the others
MAX_CELLS, FILLED = 150, 0.6  # a grid with at most so many cells and at least this share filled


def plot_curves(runs: Sequence[RunRow], settings: Sequence[SettingRow], path: Path) -> Path:
    """Draw curves: the best settings in colour, the others in grey behind them, a cross where a run was pruned."""
    by_setting = defaultdict(list)
    for run in runs:
        if run.curve:
            by_setting[run.setting].append(run)
    groups = []
    for rank, row in reversed(list(enumerate(settings))):
        members = by_setting[row.setting]
        curves = [(list(run.curve), list(run.curve.values())) for run in members]
        stopped = frozenset(number for number, run in enumerate(members) if run.state == "pruned")
        color = PALETTE[rank] if rank < SHOWN else OTHERS
        groups.append(Curves(f"{row.setting}: {describe(row.changes)}", curves, color, rank < SHOWN, stopped))
    return write_curves({"": groups[::-1]}, path, "validation top-1 (%)")


def plot_heat_map(settings: Sequence[SettingRow], x: Axis, y: Axis, path: Path) -> tuple[Path, bool]:
    """Draw accuracy by two keys, as cells where the values make a grid (the second result is then True), else as
    points."""
    from matplotlib import pyplot

    both = [row for row in settings if x.key in row.changes and y.key in row.changes]
    columns, rows = (ordered([row.changes[axis.key] for row in both]) for axis in (x, y))
    found = defaultdict(list)
    for row in both:
        found[repr(row.changes[y.key]), repr(row.changes[x.key])].append(row)
    is_grid = len(rows) * len(columns) <= MAX_CELLS and len(found) >= FILLED * len(rows) * len(columns)
    size = (2.5 + 0.95 * len(columns), 1.8 + 0.5 * len(rows)) if is_grid else (7, 5)
    figure, axes = pyplot.subplots(figsize=size, layout="constrained")
    if is_grid:
        draw_cells(axes, found, rows, columns)
    else:
        draw_points(axes, both, x, y)
    axes.set(xlabel=x.key, ylabel=y.key)
    return save(figure, path), is_grid


def draw_cells(axes: Any, found: dict[tuple[str, str], list[SettingRow]], rows: list[Any], columns: list[Any]) -> None:
    members = [[found.get((repr(row), repr(column)), []) for column in columns] for row in rows]
    values = [[mean(one.score for one in cell) if cell else float("nan") for cell in line] for line in members]
    image = axes.imshow(values, cmap="viridis", aspect="auto", origin="lower")
    for number, line in enumerate(members):
        for column, cell in enumerate(line):
            if cell:
                text = f"{values[number][column]:.1f}"
                text = text if all(row.is_complete for row in cell) else f"({text})"
                color = "black" if image.norm(values[number][column]) > 0.6 else "white"
                axes.text(column, number, text, ha="center", va="center", color=color, fontsize=9)
    axes.set_xticks(range(len(columns)), [shorten(show(value), 16) for value in columns])
    axes.set_yticks(range(len(rows)), [shorten(show(value), 24) for value in rows])
    axes.figure.colorbar(image, label="validation top-1 (%)")


def draw_points(axes: Any, settings: Sequence[SettingRow], x: Axis, y: Axis) -> None:
    (across, x_labels), (up, y_labels) = (coordinates([row.changes[axis.key] for row in settings]) for axis in (x, y))
    scores = [row.score for row in settings]
    for is_complete, marker in ((False, "x"), (True, "o")):
        chosen = [number for number, row in enumerate(settings) if row.is_complete is is_complete]
        points = axes.scatter(
            [across[n] for n in chosen],
            [up[n] for n in chosen],
            c=[scores[n] for n in chosen],
            marker=marker,
            s=60,
            vmin=min(scores),
            vmax=max(scores),
        )
    for axis, labels, scale in ((x, x_labels, "x"), (y, y_labels, "y")):
        if labels:
            axes.set(**{f"{scale}ticks": range(len(labels)), f"{scale}ticklabels": [shorten(t, 24) for t in labels]})
        elif axis.log:
            axes.set(**{f"{scale}scale": "log"})
            getattr(axes, f"{scale}axis").set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(alpha=0.3)
    axes.figure.colorbar(points, label="validation top-1 (%)")


def coordinates(values: Sequence[Any]) -> tuple[list[float], list[str]]:
    """Return positions on an axis and their labels: numbers as they are, others by their index among the labels."""
    if all(map(is_number, values)):
        return list(values), []
    labels = ordered(values)
    return [labels.index(value) for value in values], [show(value) for value in labels]


def ordered(values: Sequence[Any]) -> list[Any]:
    """Return each value once: numbers by size, others by their text."""
    distinct = {repr(value): value for value in values}.values()
    return sorted(distinct) if all(map(is_number, values)) else sorted(distinct, key=repr)


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def plot_parallel(settings: Sequence[SettingRow], keys: Sequence[str], path: Path) -> Path:
    """Draw parallel coordinates: an axis per key and one for accuracy; the best line is thick."""
    from matplotlib import pyplot

    columns = [[row.changes.get(key) for row in settings] for key in keys]
    scaled = [positions(column) for column in columns]
    scores = [row.score for row in settings]
    low, width = min(scores), (max(scores) - min(scores)) or 1.0
    figure, axes = pyplot.subplots(figsize=(2.5 + 2.0 * len(keys), 4.5), layout="constrained")
    for number in reversed(range(len(settings))):
        share = (scores[number] - low) / width
        line = [heights[number] for heights, _ in scaled] + [share]
        color = pyplot.get_cmap("viridis")(0.95 * share)  # the end of the scale is too pale on white
        axes.plot(range(len(line)), line, color=color, linewidth=3 if number == 0 else 1.5, alpha=0.9)
    ticks = [labels for _, labels in scaled] + [{f"{low + share * width:.1f}": share for share in (0.0, 0.5, 1.0)}]
    for x, labels in enumerate(ticks):
        axes.axvline(x, color="0.8", linewidth=0.8, zorder=0)
        for text, y in labels.items():
            box = {"facecolor": "white", "edgecolor": "0.8", "pad": 2}
            label = axes.text(x, y, shorten(text, 24), fontsize=9, ha="center", va="center", bbox=box, zorder=3)
            label.set_in_layout(False)
    axes.set_xticks(range(len(keys) + 1), [*keys, "validation (%)"])
    axes.set_yticks([])
    axes.set_xlim(-0.3, len(keys) + 0.3)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return save(figure, path)


def positions(values: Sequence[Any]) -> tuple[list[float], dict[str, float]]:
    """Return each value's height in [0, 1], or `MISSING`, and the labels with their heights. Ranks are evenly
    spaced."""
    distinct = ordered([value for value in values if value is not None])
    ranks = {repr(value): rank / max(1, len(distinct) - 1) for rank, value in enumerate(distinct)}
    shown = distinct if len(distinct) <= 12 else [distinct[0], distinct[len(distinct) // 2], distinct[-1]]
    heights = [MISSING if value is None else ranks[repr(value)] for value in values]
    labels = {show(value): ranks[repr(value)] for value in shown}
    return heights, labels | ({"-": MISSING} if None in values else {})


def plot_importance(importance: Importance, path: Path) -> Path:
    """Draw a bar for each key, and one for what keys explain together."""
    from matplotlib import pyplot

    shares = importance.alone | {"combinations": importance.together}
    figure, axes = pyplot.subplots(figsize=(7, 1.2 + 0.45 * len(shares)), layout="constrained")
    names = list(shares)[::-1]
    colors = ["0.6" if name == "combinations" else "C0" for name in names]
    bars = axes.barh(names, [shares[name] for name in names], color=colors)
    axes.bar_label(bars, labels=[f"{100 * shares[name]:.0f} %" for name in names], padding=3)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
    axes.set(xlabel="share of the variance of validation accuracy (fANOVA)")
    return save(figure, path)


def save(figure: Any, path: Path) -> Path:
    from matplotlib import pyplot

    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path
