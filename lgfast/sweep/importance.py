"""Weigh a sweep's keys by functional ANOVA (Hutter et al., 2014): the share of variance that each explains alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, pvariance

from lgfast.sweep.results import SettingRow
from lgfast.sweep.space import Space
from lgfast.sweep.study import Study

FEWEST = 8  # the fewest settings to which a random forest is fitted


@dataclass(frozen=True)
class Importance:
    """Shares of the variance of validation accuracy over the space; they and `together` add up to 1."""

    alone: dict[str, float]  # key -> its main effect, the largest first
    together: float  # what only combinations of keys explain
    left_out: list[str]  # keys that some settings do not have
    is_exact: bool  # over the whole grid; else from a random forest fitted to the settings that were tried


def find_importance(study: Study, settings: Sequence[SettingRow]) -> Importance | None:
    """Weigh keys over the settings whose every seed is complete; None where these are too few, alike, or differ in one
    key."""
    complete = [row for row in settings if row.is_complete]
    space = study.plan.space
    if len({row.score for row in complete}) < 2 or len(space.axes) < 2:
        return None
    if space.is_grid and len(complete) == len(space.grid()):
        return of_grid(space, complete)
    return of_forest(study) if len(complete) >= FEWEST else None


def of_grid(space: Space, settings: Sequence[SettingRow]) -> Importance:
    """Compute the exact shares: the variance of each key's means over all other keys, relative to the whole grid's."""
    total = pvariance([row.score for row in settings])
    alone = {}
    for axis in space.axes:
        by_value: dict[str, list[float]] = defaultdict(list)
        for row in settings:
            by_value[repr(row.changes[axis.key])].append(row.score)
        alone[axis.key] = pvariance([mean(values) for values in by_value.values()]) / total
    return Importance(ordered(alone), max(0.0, 1 - sum(alone.values())), [], is_exact=True)


def of_forest(study: Study) -> Importance:
    """Compute Optuna's fANOVA of the complete runs, as shares of the forest's variance (Optuna scales them to sum to
    1)."""
    from optuna.importance import FanovaImportanceEvaluator

    found = FanovaImportanceEvaluator(seed=0).evaluate(study.optuna)
    alone = {key: float(share) for key, share in found.items()}
    left_out = [axis.key for axis in study.plan.space.axes if axis.key not in alone]
    return Importance(ordered(alone), max(0.0, 1 - sum(alone.values())), left_out, is_exact=False)


def ordered(alone: dict[str, float]) -> dict[str, float]:
    return dict(sorted(alone.items(), key=lambda item: -item[1]))
