"""The plots of a sweep, as PNGs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lgfast.sweep.results import RunRow, SettingRow
from lgfast.sweep.study import Study
from lgfast.sweep.table import describe, shorten, show

SHOWN = 5  # settings with a color and a name in the plot of the curves
LABEL = 90  # characters of a setting's name in it
MISSING = -0.15  # height of settings that do not have a key, below the others


def plot_curves(runs: Sequence[RunRow], settings: Sequence[SettingRow], path: Path) -> Path:
    """A line per run, the best settings in color; a cross where a run was pruned."""
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(figsize=(8, 5.2), layout="constrained")
    colors = {row.setting: f"C{rank}" for rank, row in enumerate(settings[:SHOWN])}
    for run in runs:
        epochs, top1 = list(run.curve), list(run.curve.values())
        marker = {"marker": "x" if run.state == "pruned" else "o" if len(epochs) == 1 else None, "markevery": [-1]}
        style = {"color": colors.get(run.setting, "0.75"), "zorder": 2 if run.setting in colors else 1}
        axes.plot(epochs, top1, linewidth=1.2, markersize=5, **(marker if epochs else {}), **style)
    for row in settings[:SHOWN]:
        axes.plot([], [], color=colors[row.setting], label=shorten(f"{row.setting}: {describe(row.changes)}", LABEL))
    if len(settings) > SHOWN:
        axes.plot([], [], color="0.75", label="others")
    if any(run.state == "pruned" for run in runs):
        axes.plot([], [], color="0.4", marker="x", markersize=5, linestyle="", label="pruned")
    axes.set(xlabel="epoch", ylabel="validation top-1 (%)")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower left", fontsize=9, title="setting, best first", alignment="left", frameon=False)
    return save(figure, path)


def plot_parallel(settings: Sequence[SettingRow], keys: Sequence[str], path: Path) -> Path:
    """Parallel coordinates: an axis per key and one for accuracy; the best line is thick."""
    from matplotlib import pyplot

    columns = [[row.changes.get(key) for row in settings] for key in keys]
    scaled = [positions(column) for column in columns]
    means = [row.mean for row in settings]
    low, width = min(means), (max(means) - min(means)) or 1.0
    figure, axes = pyplot.subplots(figsize=(2.5 + 2.0 * len(keys), 4.5), layout="constrained")
    for number in reversed(range(len(settings))):
        share = (means[number] - low) / width
        line = [heights[number] for heights, _ in scaled] + [share]
        color = pyplot.get_cmap("viridis")(0.95 * share)  # the end of the scale is too pale on white
        axes.plot(range(len(line)), line, color=color, linewidth=3 if number == 0 else 1.5, alpha=0.9)
    ticks = [labels for _, labels in scaled] + [{f"{low + share * width:.1f}": share for share in (0.0, 0.5, 1.0)}]
    for x, labels in enumerate(ticks):
        axes.axvline(x, color="0.8", linewidth=0.8, zorder=0)
        for text, y in labels.items():
            box = {"facecolor": "white", "edgecolor": "0.8", "pad": 2}
            axes.text(x, y, shorten(text, 24), fontsize=9, ha="center", va="center", bbox=box, zorder=3).set_in_layout(
                False
            )
    axes.set_xticks(range(len(keys) + 1), [*keys, "val top-1 (%)"])
    axes.set_yticks([])
    axes.set_xlim(-0.3, len(keys) + 0.3)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return save(figure, path)


def positions(values: Sequence[Any]) -> tuple[list[float], dict[str, float]]:
    """Height in [0, 1] of each value, or `MISSING`, and the labels with their heights. Values are spaced by rank."""
    present = [value for value in values if value is not None]
    is_numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in present)
    distinct = sorted(set(map(repr, present)), key=float if is_numeric else None)
    ranks = {text: rank / max(1, len(distinct) - 1) for rank, text in enumerate(distinct)}
    by_text = {repr(value): show(value) for value in present}
    shown = distinct if len(distinct) <= 12 else [distinct[0], distinct[len(distinct) // 2], distinct[-1]]
    heights = [MISSING if value is None else ranks[repr(value)] for value in values]
    return heights, {by_text[text]: ranks[text] for text in shown} | ({"-": MISSING} if None in values else {})


def plot_importance(study: Study, path: Path) -> Path | None:
    """fANOVA importance of each key; None with too few finished trials or a single key."""
    import optuna
    from matplotlib import pyplot

    complete = study.optuna.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if len(complete) < 4 or len({trial.value for trial in complete}) < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna marks some of this experimental
        importance = optuna.importance.get_param_importances(study.optuna)
    if len(importance) < 2:
        return None
    figure, axes = pyplot.subplots(figsize=(7, 1.2 + 0.45 * len(importance)), layout="constrained")
    names = list(importance)[::-1]
    bars = axes.barh(names, [importance[name] for name in names])
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set_xlim(0, 1)
    axes.set(xlabel="share of the variance of validation accuracy (fANOVA)")
    return save(figure, path)


def save(figure: Any, path: Path) -> Path:
    from matplotlib import pyplot

    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path
