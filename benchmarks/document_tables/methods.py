"""Tables of methods beside guidance, and of ways to guide PVTv2: each paired by seed with guidance alone."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

from benchmarks.document_tables.rows import age, read_csv
from lgfast.reports.spread import Spread
from lgfast.reports.table import Table


def scores(results: Path, kind: str) -> dict[str, dict[str, float]]:
    """Return the accuracy on validation images after the last epoch, in percent, by method and seed, of all folders
    of the kind."""
    found: dict[str, dict[str, float]] = {}
    for path in sorted(results.glob(f"*_{kind}/*-seed*.summary.csv"), key=lambda path: age(path.parent)):
        method, seed = path.name.removesuffix(".summary.csv").rsplit("-seed", 1)
        found.setdefault(method, {})[seed] = float(read_csv(path)[-1]["val_top1"])
    return found


def methods(results: Path) -> str:
    """Return the table of benchmarks/guidance_methods.py."""
    return beside_guidance(results, "methods")


def pvtv2(results: Path) -> str:
    """Return the table of benchmarks/guidance_pvtv2.py."""
    return beside_guidance(results, "pvtv2")


def beside_guidance(results: Path, kind: str) -> str:
    """Return the table, the best method first. `beside guided` is the mean difference over the seeds of both."""
    found = scores(results, kind)
    guided = found.get("guided", {})

    def line(method: str, by_seed: dict[str, float]) -> list[str]:
        gains = Spread.of(score - guided[seed] for seed, score in by_seed.items() if seed in guided)
        sign = "+" if gains.mean is not None and gains.mean >= 0 else ""
        told = "" if method == "guided" else sign + str(gains)
        return [method, str(Spread.of(by_seed.values())), told, str(len(by_seed))]

    ranked = sorted(found.items(), key=lambda item: -mean(item[1].values()))
    return Table(["method", "validation (%)", "beside guided", "seeds"], [line(*item) for item in ranked]).markdown()
