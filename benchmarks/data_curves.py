"""What guidance gives as images become fewer: one student with and without it, on parts of 6,000 images of CIFAR-100.

    python -m benchmarks.data_curves --data DATA --seeds 1,2,3 [--images 600,1500,3000,6000] [--out runs/data-curves]

The recipe is cifar100-cpu-best; its twin differs by `guidance.weight=0` alone. All runs take as many steps, so that
fewer images are seen more often; a part holds the smaller ones. The teacher learns from the same images as the student,
by its own recipe. Runs are tested once, on 2,000 test images after the last epoch. Ctrl-C saves; the same command goes
on. Every finished run leaves its curve beside its folder; move the curves into
benchmarks/results/DATE_HARDWARE_data-curves.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import lgfast.models  # noqa: F401 - registers the students
from benchmarks.guidance_methods import run_seed
from lgfast.config import Config, load_recipe, replace
from lgfast.runtime.interrupt import InterruptFlag

RECIPE = "cifar100-cpu-best"
ALL_IMAGES = 6000  # for which the recipe's epochs are meant
VARIANTS = {"base": {"guidance.weight": 0}, "guided": {}}


def configs(num_images: int, seed: int, out: Path, changes: dict[str, str]) -> list[Config]:
    """Return the runs of one seed on the first images: without and with guidance, with equal views."""
    recipe = load_recipe(RECIPE)
    epochs = round(recipe.epochs * ALL_IMAGES / num_images)
    common = {
        "seed": seed, "data.seed": seed, "data.train_limit": num_images, "epochs": epochs, "eval.every_epochs": epochs,
        "optim.warmup_epochs": recipe.optim.warmup_epochs * epochs // recipe.epochs, "log.tensorboard": "false",
    }  # fmt: skip
    runs = []
    for variant, settings in VARIANTS.items():
        name = f"{variant}-{num_images}"
        place = {"name": name, "run_dir": str(out / f"{name}-seed{seed}")}
        runs.append(replace(recipe, common | settings | place | changes))
    return runs


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with CIFAR-100; default data")
    parser.add_argument("--seeds", default="1,2,3", help="comma-separated; default 1,2,3")
    parser.add_argument("--images", default="600,1500,3000,6000", help="comma-separated; default 600,1500,3000,6000")
    parser.add_argument("--out", type=Path, default=Path("runs/data-curves"), help="default runs/data-curves")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of every run")
    options = parser.parse_args(argv)
    changes = {"data.root": str(options.data)} | dict(pair.split("=", 1) for pair in options.set)
    with InterruptFlag().installed() as interrupt:
        for seed in map(int, options.seeds.split(",")):
            for num_images in map(int, options.images.split(",")):
                if not interrupt.requested:
                    run_seed(configs(num_images, seed, options.out, changes), interrupt)


if __name__ == "__main__":
    main()
