"""Draw the pictures of a run's page: its curves, and how far its heads look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lgfast.inference.attention import LayerDistance
from lgfast.records.files import atomic_path
from lgfast.records.result import Result

Row = Mapping[str, Any]
# title -> (column of an epoch's row, its name in the picture)
PANELS = {
    "loss": (("loss", "training"), ("val_loss", "selection images")),
    "guidance loss": (("guidance_loss", "training"),),
    "accuracy (%)": (("train_top1", "training"), ("val_top1", "selection images")),
    "learning rate": (("lr", ""),),
    "images/s": (("images_per_s", ""),),
}


def save(figure: Any, path: Path) -> Path:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        figure.savefig(file, dpi=110)
    return path


def new_figure(width: float, height: float) -> Any:
    """Make a figure outside pyplot, whose global state stays as it is.

    Raises:
        ImportError: matplotlib is missing.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw_curves(rows: Sequence[Row], result: Result | None, path: Path) -> Path:
    """Draw panels of loss, guidance loss, accuracy, learning rate and images/s, where a run has them.

    Args:
        rows: the rows of its epochs.
        result: tells the epoch that was kept and where guidance ended, which are marked.
    """
    panels = {
        title: [(name, label) for name, label in columns if any(row.get(name) for row in rows)]
        for title, columns in PANELS.items()
    }
    shown = {title: columns for title, columns in panels.items() if columns}
    figure = new_figure(11, 3.0 * -(-len(shown) // 3))
    for number, (title, columns) in enumerate(shown.items(), 1):
        axes = figure.add_subplot(-(-len(shown) // 3), 3, number)
        for name, label in columns:
            points = [(row["epoch"], row[name]) for row in rows if row.get(name) is not None]
            marker = "o" if len(points) == 1 else None
            axes.plot(*zip(*points, strict=True), label=label, marker=marker, linewidth=1.6)
        if result is not None and title == "accuracy (%)":
            axes.axvline(result.best_epoch, color="0.5", linestyle=":", label=f"epoch {result.best_epoch}, kept")
        if result is not None and result.guided_epochs and title == "guidance loss":
            axes.axvline(result.guided_epochs, color="0.5", linestyle="--", label="guidance ended")
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if any(label for _, label in columns):
            axes.legend(fontsize="small", frameon=False)
    return save(figure, path)


def draw_distances(found: Mapping[str, Mapping[str, LayerDistance]], path: Path) -> Path:
    """Draw mean attention distances by layer: a dot for each head, a line through the means of each network.

    Args:
        found: what `attention_distances` returned, by the network's name.
    """
    layers = list(dict.fromkeys(name for distances in found.values() for name in distances))
    figure = new_figure(min(11, 5 + 0.4 * len(layers)), 3.6)
    axes = figure.add_subplot()
    for number, (network, distances) in enumerate(found.items()):
        depths = [layers.index(name) + 1 for name in distances]
        color = f"C{number}"
        axes.plot(depths, [layer.mean for layer in distances.values()], color=color, label=network, linewidth=1.8)
        for depth, layer in zip(depths, distances.values(), strict=True):
            axes.plot([depth] * len(layer.heads), layer.heads, "o", color=color, alpha=0.45, markersize=4)
    uniform = next(iter(found.values()))
    axes.plot(
        range(1, len(uniform) + 1), [layer.uniform for layer in uniform.values()], color="0.5", linestyle="--",
        label="looks everywhere alike",
    )  # fmt: skip
    axes.set(xlabel="attention layer", ylabel="mean attention distance (pixels)")
    axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    axes.grid(alpha=0.3)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize="small", frameon=False)
    return save(figure, path)
