"""What guidance does to a small ViT on all 50,000 images of CIFAR-100: its accuracy epoch by epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.document_tables.rows import RESULTS, age, read_csv
from benchmarks.pictures.svg import COLORS, axes

PICTURE = RESULTS.parents[1] / "docs" / "images" / "all-images.svg"
LABELS = {"base": "without guidance", "guided": "with locality guidance"}
COLUMNS = {"train": "train_top1", "test": "val_top1"}


def series(results: Path) -> dict[str, Any]:
    """Return (epoch, accuracy in percent) of the epochs that have it: `test` and `train`, by variant."""
    folder = max(results.glob("*_cifar100-all"), key=age)
    found: dict[str, Any] = {"runs": folder.name}
    for variant in LABELS:
        rows = read_csv(folder / f"{variant}-seed1.summary.csv")
        found[variant] = {
            name: [(int(row["epoch"]), round(float(row[column]), 2)) for row in rows if row[column]]
            for name, column in COLUMNS.items()
        }
    return found


def draw(found: dict[str, Any], path: Path) -> None:
    with axes(path, found, 5.4) as plot:
        for variant, label in LABELS.items():
            color = COLORS[variant]
            plot.plot(*zip(*found[variant]["train"], strict=True), ":", color=color, label=f"{label}, training images")
            plot.plot(*zip(*found[variant]["test"], strict=True), "o-", color=color, lw=2.2, label=label)
            epoch, top1 = found[variant]["test"][-1]
            plot.annotate(f"{top1:.1f} %", (epoch, top1), xytext=(5, -3), textcoords="offset points", color=color)
        plot.set(xlabel="epoch", ylabel="accuracy (%)", ylim=(0, None), xlim=(1, None))
        plot.set_title("A small ViT on 50,000 CIFAR-100 images")
        plot.legend(frameon=False, loc="lower right", fontsize=8)
