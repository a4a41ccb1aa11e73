"""Command line: `python -m lgfast.report runs/*`, runs side by side.

Runs that differ in their seed alone are one setting, named by the keys in which the settings differ. The table has mean
and standard deviation over seeds, and each setting's difference from the first one, paired by seed.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from lgfast.config import FREE_ON_RESUME, digest, load_yaml, to_dict
from lgfast.records.result import Result, read_result
from lgfast.records.run_log import read_curve, read_training_seconds
from lgfast.runtime.command_line import command_line


@dataclass(frozen=True)
class Run:
    """One run folder. Accuracies in percent."""

    folder: Path
    seed: int
    keys: dict[str, Any]  # dotted key -> value, of what bears on the result; without the seed
    curve: tuple[list[int], list[float]]  # epochs judged, accuracy on the selection images
    seconds: float  # of its training epochs
    result: Result | None  # None: unfinished, or a trial of a sweep, which is not tested

    @property
    def val_top1(self) -> float | None:
        return max(self.curve[1], default=None)


@dataclass(frozen=True)
class Setting:
    """Runs that differ in their seed alone."""

    changes: dict[str, Any]  # the keys in which settings differ
    runs: list[Run]

    @property
    def name(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.changes.items()) or "all runs"

    @property
    def seeds(self) -> list[int]:
        return [run.seed for run in self.runs]

    def values(self, figure: str) -> list[float]:
        """Of val_top1 (every run with an epoch judged), test_top1 or last_test_top1 (finished runs)."""
        sources = self.runs if figure == "val_top1" else [run.result for run in self.runs]
        values = [getattr(source, figure) for source in sources if source is not None]
        return [value for value in values if value is not None]


def read_run(folder: Path) -> Run:
    """A run as its folder has it, finished or not."""
    config = load_yaml(folder / "config.yaml")
    keys = flatten(to_dict(config))
    telling = {key: value for key, value in keys.items() if key != "seed" and not key.startswith(FREE_ON_RESUME)}
    has_epochs = (folder / "summary.csv").is_file()
    curve = read_curve(folder) if has_epochs else ([], [])
    seconds = read_training_seconds(folder) if has_epochs else 0.0
    return Run(folder, config.seed, telling, curve, seconds, read_result(folder))


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"optim": {"lr": 1}} as {"optim.lr": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def find_runs(places: Sequence[Path]) -> list[Path]:
    """Run folders among and below the places (a sweep's are below it), each once; files are passed over."""
    found = []
    for place in places:
        if not place.exists():
            raise ValueError(f"{place}: no such folder; give folders of runs, as runs/*")
        if place.is_dir():
            found += sorted(path.parent for path in place.rglob("config.yaml"))
    if not found:
        raise ValueError(f"no run (a folder with a config.yaml) in {', '.join(map(str, places))}")
    return list(dict.fromkeys(found))


def group(runs: Sequence[Run]) -> list[Setting]:
    """Settings in the order of their first run."""
    differing = [key for key in runs[0].keys if any(run.keys.get(key) != runs[0].keys[key] for run in runs)]
    members: dict[str, list[Run]] = {}
    for run in runs:
        members.setdefault(digest(run.keys), []).append(run)
    return [Setting({key: group[0].keys[key] for key in differing}, group) for group in members.values()]


def difference(setting: Setting, baseline: Setting, figure: str) -> tuple[float | None, float | None]:
    """Mean of the differences of runs with the same seed (percentage points), and the p-value of a paired t-test.

    Args:
        figure: val_top1 or test_top1.
    Returns:
        None in place of the first where no seed is common, of the second where fewer than two are or all differ alike.
    """
    own, others = by_seed(setting, figure), by_seed(baseline, figure)
    seeds = sorted(own.keys() & others.keys())
    if not seeds:
        return None, None
    differences = [own[seed] - others[seed] for seed in seeds]
    if len(set(differences)) < 2:
        return mean(differences), None
    from scipy.stats import ttest_1samp

    p_value = float(ttest_1samp(differences, 0).pvalue)
    return mean(differences), None if math.isnan(p_value) else p_value


def by_seed(setting: Setting, figure: str) -> dict[int, float]:
    """Of runs with the same seed, which are repetitions, the first."""
    values = {}
    for run in reversed(setting.runs):
        for value in Setting({}, [run]).values(figure):
            values[run.seed] = value
    return values


def summarise(settings: Sequence[Setting]) -> list[dict[str, Any]]:
    """One row a setting. Differences are of test accuracies where all runs have one, else of validation."""
    figure = "test_top1" if all(run.result for setting in settings for run in setting.runs) else "val_top1"
    rows = []
    for setting in settings:
        row: dict[str, Any] = {"setting": setting.name, "runs": len(setting.runs)}
        row["finished"] = len(setting.values("test_top1"))
        for name in ("val_top1", "test_top1", "last_test_top1"):
            values = setting.values(name)
            row[name] = mean(values) if values else None
            row[f"{name}_std"] = stdev(values) if len(values) > 1 else None
        row["difference"], row["p_value"] = difference(setting, settings[0], figure)
        row["difference_of"] = figure
        row["minutes"] = mean(run.seconds for run in setting.runs) / 60
        rows.append(row)
    return rows


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table; accuracies in percent."""
    what = "test" if rows[0]["difference_of"] == "test_top1" else "validation"
    lines = [
        f"| setting | runs | validation | test | test, last epoch | {what} against the first (p) | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        scores = [spread(row[name], row[f"{name}_std"]) for name in ("val_top1", "test_top1", "last_test_top1")]
        against = "-" if row is rows[0] or row["difference"] is None else f"{row['difference']:+.2f}"
        if against != "-" and row["p_value"] is not None:
            against += f" ({row['p_value']:.2g})"
        cells = [row["setting"], str(row["runs"]), *scores, against, f"{row['minutes']:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(value: float | None, deviation: float | None) -> str:
    """E.g. "61.16 ± 2.87"; one value has no deviation, none is a dash."""
    if value is None:
        return "-"
    return f"{value:.2f}" if deviation is None else f"{value:.2f} ± {deviation:.2f}"


def write_csv(settings: Sequence[Setting], rows: Sequence[dict[str, Any]], path: Path) -> None:
    """The table with a column for each key in which settings differ."""
    keys = list(settings[0].changes)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=[*keys, *rows[0]], lineterminator="\n")
        writer.writeheader()
        writer.writerows(setting.changes | row for setting, row in zip(settings, rows, strict=True))


def plot(settings: Sequence[Setting], path: Path) -> None:
    """Accuracy on the selection images by epoch, a colour a setting."""
    try:
        import matplotlib
    except ImportError:
        raise ValueError("--plot needs matplotlib: pip install matplotlib") from None

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for place, setting in enumerate(settings):
        if curves := [run.curve for run in setting.runs if run.curve[0]]:
            plot_curves(axes, setting.name, f"C{place % 10}", curves)
    axes.set(xlabel="epoch", ylabel="accuracy on the selection images (%)", ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def plot_curves(axes: Any, label: str, color: str, curves: Sequence[tuple[list[int], list[float]]]) -> None:
    """Thin lines for single runs (epochs, accuracies), a thick one for their mean as far as all of them go."""
    for epochs, accuracies in curves:
        axes.plot(epochs, accuracies, color=color, alpha=0.3, linewidth=1)
    means = [mean(values) for values in zip(*(accuracies for _, accuracies in curves), strict=False)]
    axes.plot(curves[0][0][: len(means)], means, color=color, linewidth=2.5, label=label)


def parser() -> argparse.ArgumentParser:
    parse = argparse.ArgumentParser(prog="python -m lgfast.report", description=__doc__)
    parse.add_argument(
        "runs", nargs="+", type=Path, help="folders of runs or of sweeps; the first run's is compared with"
    )
    parse.add_argument("--csv", type=Path, metavar="FILE", help="write the table with a column for each differing key")
    parse.add_argument("--plot", type=Path, metavar="FILE", help="write the curves as PNG, SVG or PDF")
    return parse


@command_line
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    settings = group([read_run(folder) for folder in find_runs(options.runs)])
    rows = summarise(settings)
    print(markdown(rows))
    if (unfinished := sum(row["runs"] - row["finished"] for row in rows)) > 0:
        print(
            f"\n{unfinished} of {sum(row['runs'] for row in rows)} runs are not finished, or not tested as in a sweep"
        )
    if options.csv:
        write_csv(settings, rows, options.csv)
    if options.plot:
        plot(settings, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
