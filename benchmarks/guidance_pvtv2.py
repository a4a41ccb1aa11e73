"""What guidance needs to help PVTv2-B0 in minutes: other blocks, weights, stops and views, one at a time.

    python -m benchmarks.guidance_pvtv2 --data DATA --seeds 1 [--methods base,guided] [--out runs/pvtv2]

The student of cifar100-pvtv2-b0-guided at 64 pixels learns from 5,000 images of CIFAR-100 for eight epochs and is
judged on 1,000 others. Its grids are 16, 8, 4 and 2 wide, those of the teacher's stages 32, 16 and 8. Runs of one seed
are paired as in guidance_methods.py, whose way of running they share. Move the curves into
benchmarks/results/DATE_HARDWARE_pvtv2, and `python benchmarks/tables.py` puts them into docs/guidance.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lgfast.models  # noqa: F401 - registers the students
from benchmarks.guidance_methods import compare
from lgfast.config import Config, load_recipe, replace

RECIPE = "cifar100-pvtv2-b0-guided"
SETTING = {
    "data.train_limit": 6000,
    "data.batch_size": 32,
    "augment.image_size": 64,
    "augment.teacher_size": 32,
    "teacher.recipe": "cifar100-cpu-best-resnet8",
    "optim.warmup_epochs": 1,
    "optim.per_step": "true",
    "epochs": 8,
    "eval.protocol": "holdout",
    "eval.holdout_fraction": 1 / 6,
    "eval.every_epochs": 2,
    "log.tensorboard": "false",
    "log.report": "false",  # it would judge the test images
}
MILD_VIEWS = {"augment.rand_augment": "", "augment.erase_prob": 0, "augment.crop_scale": "0.3,1.0"}
NO_GUIDANCE = {"guidance.weight": 0}
METHODS: dict[str, dict[str, Any]] = {
    "base": MILD_VIEWS | NO_GUIDANCE,
    "guided": MILD_VIEWS,
    "two-taps": MILD_VIEWS | {"guidance.student_layers": "1,3", "teacher.stages": "1,2"},
    "earlier-taps": MILD_VIEWS | {"guidance.student_layers": "1,3,5"},
    "weight-0.5": MILD_VIEWS | {"guidance.weight": 0.5},
    "stop-3": MILD_VIEWS | {"guidance.stop": "epoch:3"},
    "strong-views-base": NO_GUIDANCE,
    "strong-views": {},
}


def method_configs(methods: Sequence[str], seed: int, out: Path, changes: dict[str, Any]) -> list[Config]:
    """Return a configuration for each way."""
    base = replace(load_recipe(RECIPE), SETTING | {"seed": seed, "data.seed": seed} | changes)
    return [
        replace(base, METHODS[name] | {"name": name, "run_dir": str(out / f"{name}-seed{seed}")}) for name in methods
    ]


def main(argv: Sequence[str] | None = None) -> None:
    compare(argv, __doc__, METHODS, method_configs, "runs/pvtv2")


if __name__ == "__main__":
    main()
