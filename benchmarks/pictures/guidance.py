"""What guidance does to a small ViT on CIFAR-100: the README's first picture."""

from __future__ import annotations

import csv
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.document_tables.rows import RESULTS, age, read_csv
from benchmarks.pictures.svg import COLORS, axes

PICTURE = RESULTS.parents[1] / "docs" / "images" / "guidance.svg"
RUNS = "*_cifar100-cpu*"
VARIANTS = {"base": "without guidance", "guided": "with locality guidance"}


def newest_runs(results: Path) -> Path:
    """Return the newest folder of runs that also has attention distances."""
    return max((path.parent for path in results.glob(f"{RUNS}/attention_distance.csv")), key=age)


def series(results: Path) -> dict[str, Any]:
    """Return what the picture shows of the newest runs, by variant.

    Returns:
        accuracy: percent of the test images after each epoch, a list for each seed.
        top1: the kept weights' accuracy, the mean over seeds, as in the tables.
        distance: mean attention distance of each layer in pixels, over heads and seeds.
        uniform: the distance of a head that looks everywhere equally.
    """
    folder = newest_runs(results)
    heads = read_csv(folder / "attention_distance.csv")
    top1 = {row["variant"]: float(row["best_top1"]) for row in read_csv(folder / "table.csv")}
    found: dict[str, Any] = {"runs": folder.name, "uniform": round(float(heads[0]["uniform_pixels"]), 3)}
    for variant in VARIANTS:
        own = [row for row in heads if f"-{variant}-" in row["checkpoint"]]
        layers = dict.fromkeys(row["layer"] for row in own)
        found[variant] = {
            "top1": round(top1[variant], 1),
            "accuracy": [accuracy(path) for path in sorted(folder.glob(f"*-{variant}-seed*.summary.csv"))],
            "distance": [
                round(mean(float(row["distance_pixels"]) for row in own if row["layer"] == layer), 3)
                for layer in layers
            ],
        }
    return found


def accuracy(path: Path) -> list[tuple[int, float]]:
    """Return the judged epochs with their accuracy."""
    with path.open(newline="") as file:
        return [(int(row["epoch"]), float(row["val_top1"])) for row in csv.DictReader(file) if row["val_top1"]]


def draw(found: dict[str, Any], path: Path) -> None:
    with axes(path, found, 9, ncols=2, width_ratios=(3, 2)) as (left, right):
        for variant, label in VARIANTS.items():
            draw_accuracy(left, found[variant], label, COLORS[variant])
            layers = range(1, 1 + len(found[variant]["distance"]))
            right.plot(layers, found[variant]["distance"], "o-", color=COLORS[variant], label=label)
        right.axhline(found["uniform"], color="0.6", linestyle=":")
        right.text(1, found["uniform"] + 0.5, "dotted: a head that looks everywhere alike", color="0.4", fontsize=8)
        left.set(xlabel="epoch", ylabel="test accuracy (%)", title="A small ViT on 6,000 CIFAR-100 images")
        left.set(ylim=(0, None), xlim=(1, None))
        right.set(xlabel="layer", ylabel="distance (pixels of 32)", title="How far its heads look")
        right.set(ylim=(10, 18))
        left.legend(frameon=False, loc="upper left")


def draw_accuracy(axes: Any, found: dict[str, Any], label: str, color: str) -> None:
    """Draw a thin line for each seed and a thick one for their mean; write the kept weights' accuracy at its end."""
    runs = found["accuracy"]
    for run in runs:
        axes.plot(*zip(*run, strict=True), color=color, linewidth=0.8, alpha=0.45)
    epochs = [epoch for epoch, _ in runs[0]]
    means = [mean(values) for values in zip(*([top1 for _, top1 in run] for run in runs), strict=True)]
    axes.plot(epochs, means, color=color, linewidth=2.4, label=label)
    end = (epochs[-1], means[-1])
    axes.annotate(f"{found['top1']} %", end, xytext=(5, -3), textcoords="offset points", color=color)
