"""Draw the README's picture from committed runs: what guidance does to a small ViT on CIFAR-100.

    python benchmarks/figure.py            # writes docs/images/guidance.svg
    python benchmarks/figure.py --check    # fails where the picture shows other numbers than the newest runs have

The picture carries its numbers in its description, so that a test can compare them without drawing.
"""

from __future__ import annotations

import argparse
import csv
import html
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # in place of benchmarks/

from benchmarks.document_tables.rows import RESULTS, age, read_csv  # noqa: E402

PICTURE = ROOT / "docs" / "images" / "guidance.svg"
RUNS = "*_cifar100-cpu*"
VARIANTS = {"base": ("without guidance", "#8a8f98"), "guided": ("with locality guidance", "#d9480f")}


def newest_runs(results: Path) -> Path:
    """Return the newest folder of runs that also has attention distances."""
    return max((path.parent for path in results.glob(f"{RUNS}/attention_distance.csv")), key=age)


def series(folder: Path) -> dict[str, Any]:
    """Return what the picture shows, by variant.

    Returns:
        accuracy: percent of the test images after each epoch, a list for each seed.
        top1: the kept weights' accuracy, the mean over seeds, as in the tables.
        distance: mean attention distance of each layer in pixels, over heads and seeds.
        uniform: the distance of a head that looks everywhere equally.
    """
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
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    style = {"svg.fonttype": "none", "svg.hashsalt": "lgfast", "font.size": 10, "axes.spines.top": False}
    with pyplot.rc_context(style | {"axes.spines.right": False, "path.simplify": True}):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.2), width_ratios=(3, 2), layout="constrained")
        for variant, (label, color) in VARIANTS.items():
            draw_accuracy(left, found[variant], label, color)
            layers = range(1, 1 + len(found[variant]["distance"]))
            right.plot(layers, found[variant]["distance"], "o-", color=color, label=label)
        right.axhline(found["uniform"], color="0.6", linestyle=":")
        right.text(1, found["uniform"] + 0.5, "dotted: a head that looks everywhere alike", color="0.4", fontsize=8)
        left.set(xlabel="epoch", ylabel="test accuracy (%)", title="A small ViT on 6,000 CIFAR-100 images")
        left.set(ylim=(0, None), xlim=(1, None))
        right.set(xlabel="layer", ylabel="distance (pixels of 32)", title="How far its heads look")
        right.set(ylim=(10, 18))
        left.legend(frameon=False, loc="upper left")
        described = {"Description": json.dumps(found, sort_keys=True), "Date": None, "Creator": "benchmarks/figure.py"}
        figure.savefig(path, metadata=described)
        pyplot.close(figure)


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


def shown(picture: Path) -> dict[str, Any] | None:
    """Read the numbers that a picture carries."""
    text = re.search(r"<dc:description>(.*?)</dc:description>", picture.read_text(), re.DOTALL)
    return json.loads(html.unescape(text[1])) if text else None


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="draw nothing; fail where picture and results differ")
    options = parser.parse_args(argv)
    found = json.loads(json.dumps(series(newest_runs(RESULTS))))
    if not options.check:
        draw(found, PICTURE)
        print(f"wrote {PICTURE}")
    elif shown(PICTURE) != found:
        print(f"{PICTURE} is not what the results say; run: python benchmarks/figure.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
