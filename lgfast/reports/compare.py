"""Compare settings: mean and spread over seeds, and the difference from the first setting, paired by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean
from typing import Any

from lgfast.reports.runs import Setting
from lgfast.reports.spread import Spread


def compare(settings: Sequence[Setting]) -> list[dict[str, Any]]:
    """Make a row for each setting, over its trained runs. Differences are of test accuracies where all runs have one,
    else of validation accuracies."""
    is_tested = all(run.result for setting in settings for run in setting.runs if run.is_trained)
    return [describe(setting, settings[0], "test_top1" if is_tested else "val_score") for setting in settings]


def describe(setting: Setting, baseline: Setting, figure: str) -> dict[str, Any]:
    trained = [run for run in setting.runs if run.is_trained]
    under_way = [run.val_score for run in setting.runs if not run.is_trained and run.val_score is not None]
    row: dict[str, Any] = {"run": setting.folders, "setting": setting.name}
    row |= {"runs": len(setting.runs), "trained": len(trained), "tested": len(setting.values("test_top1"))}
    for name in ("val_score", "test_top1", "last_test_top1"):
        row[name], row[f"{name}_std"] = Spread.of(setting.values(name))
    row["so_far"] = max(under_way, default=None)
    row["difference"], row["p_value"] = difference(setting, baseline, figure)
    row["difference_of"] = figure
    row["minutes"] = mean(run.seconds for run in trained) / 60 if trained else None
    return row


def difference(setting: Setting, baseline: Setting, figure: str) -> tuple[float | None, float | None]:
    """Return the mean difference of runs with the same seed (percentage points), and the p-value of a paired t-test.

    Args:
        figure: val_score or test_top1.
    Returns:
        The mean is None where no seed is common; the p-value is None where fewer than two are, or all differences are
        equal.
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
    """Return the first run of each seed; further runs of a seed are repetitions."""
    values: dict[int, float] = {}
    for run in setting.runs:
        if (value := run.figure(figure)) is not None:
            values.setdefault(run.seed, value)
    return values
