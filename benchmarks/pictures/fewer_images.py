"""What guidance gives as images become fewer: the runs of benchmarks/data_curves.py."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.document_tables.rows import RESULTS, age, read_csv
from benchmarks.pictures.svg import COLORS, axes

PICTURE = RESULTS.parents[1] / "docs" / "images" / "fewer-images.svg"
LABELS = {"base": "without guidance", "guided": "with locality guidance", "teacher": "the teacher, a small CNN"}


def series(results: Path) -> dict[str, Any]:
    """Return the test accuracy in percent after the last epoch: a list over seeds, by variant and number of images."""
    folder = max(results.glob("*_data-curves"), key=age)
    found: dict[str, Any] = {"runs": folder.name} | {variant: {} for variant in LABELS}
    for path in sorted(folder.glob("*.summary.csv")):
        variant, images = re.match(r"(\w+)-(\d+)", path.name).groups()
        found[variant].setdefault(images, []).append(float(read_csv(path)[-1]["val_top1"]))
    return found


def draw(found: dict[str, Any], path: Path) -> None:
    with axes(path, found, 5.4) as plot:
        for variant, label in LABELS.items():
            images = sorted(found[variant], key=int)
            means = [mean(found[variant][number]) for number in images]
            line = ":" if variant == "teacher" else "-"
            plot.plot([int(number) for number in images], means, line, color=COLORS[variant], lw=2.2, label=label)
            for number in images:
                plot.plot(
                    [int(number)] * len(found[variant][number]), found[variant][number], "o", color=COLORS[variant]
                )
        ticks = sorted(map(int, found["base"]))
        plot.set_xscale("log")
        plot.set_xticks(ticks, [f"{number:,}" for number in ticks])
        plot.minorticks_off()
        plot.set(xlabel="images of 100 classes, in equal steps", ylabel="test accuracy (%)", ylim=(0, None))
        plot.set_title("A small ViT on fewer CIFAR-100 images")
        plot.legend(frameon=False, loc="upper left")
