"""`--dry-run`: the trials of a sweep and the time that it would take."""

from __future__ import annotations

import time
from typing import Any

import torch

from lgfast.runtime.cores import waited_for_core_s
from lgfast.sweep.probe import predict
from lgfast.sweep.space import Space
from lgfast.sweep.study import Plan
from lgfast.sweep.table import describe
from lgfast.training.console import duration

SHOWN = 20
WORTH_A_WORD = 0.1  # share of the time from which other work is mentioned


def dry_run(plan: Plan, environments: list[dict[str, str]]) -> int:
    """Print the trials and the predicted time; keep nothing.

    Args:
        environments: of the workers, which say on how many threads each computes.
    """
    workers = len(environments)
    settings = preview(plan.space, plan)
    configs = [plan.config_of(changes, seed) for changes in settings for seed in plan.space.seeds]
    print(f"{len(settings)} settings x {len(plan.space.seeds)} seeds = {len(configs)} trials")
    for number, changes in enumerate(settings[:SHOWN]):
        print(f"  setting {number}: {describe(changes)}")
    if len(settings) > SHOWN:
        print(f"  ... and {len(settings) - SHOWN} more")
    if workers > 1:
        torch.set_num_threads(int(environments[0]["OMP_NUM_THREADS"]))
    began, waited = time.monotonic(), waited_for_core_s()
    prediction = predict(configs, plan.group, Progress())
    waiting = (waited_for_core_s() - waited) / (time.monotonic() - began)
    total = prediction.total(workers)
    print(
        f"{prediction.groups} groups of up to {plan.group}; predicted {duration(total)} with "
        f"{workers} worker(s), from {len(configs)} trials of {plan.base.epochs} epochs"
        + (f"; {duration(prediction.teacher)} of it train the teacher" if prediction.teacher else "")
    )
    if waiting >= WORTH_A_WORD:
        print(
            f"other work kept this process waiting for {waiting:.0%} of the measurement; without it the sweep would "
            f"take about {duration(total * (1 - waiting))}"
        )
    if reasons := shorter(plan):
        print(f"it takes less {' and '.join(reasons)}")
    return 0


def shorter(plan: Plan) -> list[str]:
    """Reasons why the sweep will take less time than predicted from its first steps."""
    reasons = []
    if plan.pruner != "none":
        reasons.append(f"where --pruner {plan.pruner} ends trials")
    if plan.base.guidance.stop != "never":
        reasons.append("after guidance has ended")
    if plan.base.needs_teacher and plan.base.teacher.targets != "live":
        reasons.append(f"where the teacher's targets are {plan.base.teacher.targets} already")
    return reasons


class Progress:
    """Prints what is measured, and how long the measurement still takes."""

    def __init__(self) -> None:
        self.began = time.monotonic()

    def __call__(self, number: int, kinds: int, trials: int) -> None:
        passed = time.monotonic() - self.began
        left = f", {duration(passed / (number - 1) * (kinds - number + 1))} left" if number > 1 else ""
        what = f"{trials} trials of one group" if trials > 1 else "one run"
        print(f"measuring {number} of {kinds}: some steps of {what}{left}", flush=True)


def preview(space: Space, plan: Plan) -> list[dict[str, Any]]:
    """Return a grid's settings; of a sampled space, the first one and random ones in place of the rest."""
    if space.is_grid:
        return space.grid()
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial(space.own_values(plan.base))
    return [space.sample(study.ask(), plan.base) for _ in range(plan.trials or plan.group)]
