"""The sweep's plots as PNGs, and one HTML file that holds them and the table."""

from __future__ import annotations

import base64
import html
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lgfast.sweep.results import RunRow, SettingRow, find_winner
from lgfast.sweep.study import Study
from lgfast.sweep.table import cells, counts, describe, score, show

MAX_ROWS = 200  # settings in the page's table
SHOWN = 5  # settings with a color and a name in the plot of the curves
STYLE = """body{font:15px system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse}td,th{padding:.25em .8em;border-bottom:1px solid #ddd;text-align:left}
tr.best{background:#e8f3ff}img{max-width:100%}"""


def write_page(study: Study, runs: Sequence[RunRow], settings: Sequence[SettingRow], out: Path) -> list[str]:
    """Write the PNGs and index.html into `out`; lines that say where, or what is missing."""
    scored = [row for row in settings if row.mean is not None]
    if not scored:
        return []
    try:
        import matplotlib
    except ImportError:
        return ["no plots: matplotlib is missing; pip install 'lgfast[sweep]'"]
    matplotlib.use("Agg")
    keys = [axis.key for axis in study.plan.space.axes]
    images = {
        "Validation accuracy over epochs": plot_curves(runs, scored, out / "curves.png"),
        "Values of each setting; thick: the best, brighter: better": plot_parallel(scored, keys, out / "parallel.png")
        if keys
        else None,
        "Importance of the keys": plot_importance(study, out / "importance.png"),
    }
    pictures = {title: path for title, path in images.items() if path}
    (out / "index.html").write_text(page(study, runs, settings, keys, pictures, out))
    return [f"plots in {out}/index.html"]


def plot_curves(runs: Sequence[RunRow], settings: Sequence[SettingRow], path: Path) -> Path:
    """A line per run; the best settings in color."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    colors = {row.setting: f"C{rank}" for rank, row in enumerate(settings[:SHOWN])}
    labels = {row.setting: f"{row.setting}: {describe(row.changes)}"[:60] for row in settings[:SHOWN]}
    for run in runs:
        style = {"color": colors.get(run.setting, "0.75"), "zorder": 2 if run.setting in colors else 1}
        axes.plot(list(run.curve), list(run.curve.values()), linewidth=1.2, **style)
    for setting, color in colors.items():
        axes.plot([], [], color=color, label=labels[setting])
    if len(settings) > SHOWN:
        axes.plot([], [], color="0.75", label="others")
    axes.set(xlabel="epoch", ylabel="validation top-1 (%)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, title="setting, best first", title_fontsize=8)
    return save(figure, path)


def plot_parallel(settings: Sequence[SettingRow], keys: Sequence[str], path: Path) -> Path:
    """Parallel coordinates: an axis per key and one for accuracy; brighter lines are better."""
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
            axes.text(x, y, text[:24], fontsize=9, ha="center", va="center", bbox=box, zorder=3).set_in_layout(False)
    axes.set_xticks(range(len(keys) + 1), [*keys, "val top-1 (%)"])
    axes.set_yticks([])
    axes.set_xlim(-0.3, len(keys) + 0.3)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return save(figure, path)


def positions(values: Sequence[Any]) -> tuple[list[float], dict[str, float]]:
    """Height in [0, 1] of each value, and the labels with their heights. Values are spaced by rank."""
    present = [value for value in values if value is not None]
    is_numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in present)
    distinct = sorted(set(map(repr, present)), key=float if is_numeric else None)
    ranks = {text: rank / max(1, len(distinct) - 1) for rank, text in enumerate(distinct)}
    by_text = {repr(value): show(value) for value in present}
    shown = distinct if len(distinct) <= 12 else [distinct[0], distinct[len(distinct) // 2], distinct[-1]]
    heights = [float("nan") if value is None else ranks[repr(value)] for value in values]
    return heights, {by_text[text]: ranks[text] for text in shown}


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


def page(
    study: Study,
    runs: Sequence[RunRow],
    settings: Sequence[SettingRow],
    keys: Sequence[str],
    pictures: dict[str, Path],
    out: Path,
) -> str:
    """One file without references to others."""
    escape = html.escape
    winner, test = find_winner(settings), study.optuna.user_attrs.get("test")
    title = f"Sweep of {study.plan.base.name}"
    parts = [f"<!doctype html><meta charset=utf-8><title>{escape(title)}</title><style>{STYLE}</style>"]
    seeds = len(study.plan.space.seeds)
    spread = f"; mean ± standard deviation over {seeds} seeds" if seeds > 1 else ""
    parts.append(f"<h1>{escape(title)}</h1><p>{escape(counts(runs))}. Selected on validation{spread}.</p>")
    if winner:
        validation = score(winner.mean, winner.seeds, winner.spread)
        tested = f", test {score(test['mean'], len(test['top1']), test['spread'])} %" if test else ""
        parts.append(
            f"<p><b>Best: setting {winner.setting}</b> ({escape(describe(winner.changes))}), "
            f"validation {validation} %{tested}. Train it again with <code>python -m lgfast.train --config "
            f"{escape(str(out))}/best.yaml</code>.</p>"
        )
    parts.append("<h2>Settings, best first</h2><table>")
    for number, row in enumerate(cells(settings[:MAX_ROWS], keys)):
        tag = "td" if number else "th"
        mark = ' class="best"' if winner and row[0] == str(winner.setting) else ""
        parts.append(f"<tr{mark}>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) + "</tr>")
    parts.append("</table>")
    for name, path in pictures.items():
        data = base64.b64encode(path.read_bytes()).decode()
        parts.append(f'<h2>{escape(name)}</h2><img alt="{escape(name)}" src="data:image/png;base64,{data}">')
    return "\n".join(parts) + "\n"
