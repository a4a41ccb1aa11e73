"""The table of methods beside guidance: each paired by seed with guidance alone."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

from benchmarks.document_tables.rows import age, read_csv
from lgfast.reports.spread import Spread
from lgfast.reports.table import Table


def method_scores(results: Path) -> dict[str, dict[str, float]]:
    """Return the accuracy on validation images after the last epoch, in percent, by method and seed."""
    found: dict[str, dict[str, float]] = {}
    for path in sorted(results.glob("*_methods/*-seed*.summary.csv"), key=lambda path: age(path.parent)):
        method, seed = path.name.removesuffix(".summary.csv").rsplit("-seed", 1)
        found.setdefault(method, {})[seed] = float(read_csv(path)[-1]["val_top1"])
    return found


def methods(results: Path) -> str:
    """Return the table, the best method first. `beside guided` is the mean difference over the seeds of both."""
    found = method_scores(results)
    guided = found.get("guided", {})

    def line(method: str, scores: dict[str, float]) -> list[str]:
        gains = Spread.of(score - guided[seed] for seed, score in scores.items() if seed in guided)
        sign = "+" if gains.mean is not None and gains.mean >= 0 else ""
        told = "" if method == "guided" else sign + str(gains)
        return [method, str(Spread.of(scores.values())), told, str(len(scores))]

    ranked = sorted(found.items(), key=lambda item: -mean(item[1].values()))
    return Table(["method", "validation (%)", "beside guided", "seeds"], [line(*item) for item in ranked]).markdown()
