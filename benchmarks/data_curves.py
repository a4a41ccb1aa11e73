"""What guidance gives as images become fewer: one student with and without it, on parts of 6,000 images of CIFAR-100.

    python -m benchmarks.data_curves --data DATA --seeds 1,2,3 [--images 600,1500,3000,6000] [--out runs/data-curves]

The recipe is cifar100-cpu-best; its twin differs by `guidance.weight=0` alone. All runs take as many steps, so that
fewer images are seen more often; a part holds the smaller ones. The teachers learn from the same images as their
students, by the recipe's teacher recipe, also in equal steps; one of each part teaches all seeds. Runs are tested once,
on 2,000 test images after the last epoch. Ctrl-C saves; the same command goes on. Every finished run leaves its curve
beside its folder; move the curves into benchmarks/results/DATE_HARDWARE_data-curves, and `python benchmarks/figure.py`
draws them.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import lgfast.models  # noqa: F401 - registers the students
from benchmarks.guidance_methods import run_seed
from lgfast.assembly.run import train_run
from lgfast.assembly.teachers import teacher_config
from lgfast.config import Config, load_recipe, replace
from lgfast.records.result import read_result
from lgfast.records.run_log import SUMMARY
from lgfast.runtime.interrupt import Interrupted, InterruptFlag

RECIPE = "cifar100-cpu-best"
ALL_IMAGES = 6000  # for which the recipe's epochs are meant
VARIANTS = {"base": {"guidance.weight": 0}, "guided": {}}


def equal_steps(recipe: Config, num_images: int) -> Config:
    """Return the recipe on the first images, in as many epochs as make its steps; it is judged after the last."""
    epochs = round(recipe.epochs * ALL_IMAGES / num_images)
    warmup = recipe.optim.warmup_epochs * epochs // recipe.epochs
    return replace(
        recipe,
        {
            "data.train_limit": num_images,
            "epochs": epochs,
            "eval.every_epochs": epochs,
            "optim.warmup_epochs": warmup,
            "log.tensorboard": "false",
        },
    )


def student_configs(num_images: int, seed: int, out: Path, changes: dict[str, str]) -> list[Config]:
    """Return the students of one seed on the first images: without and with guidance, with equal views."""
    common = {"seed": seed, "data.seed": seed, "teacher.checkpoint": str(out / f"teacher-{num_images}")} | changes
    recipe = replace(equal_steps(load_recipe(RECIPE), num_images), common)
    return [
        replace(
            recipe,
            settings | {"name": f"{variant}-{num_images}", "run_dir": str(out / f"{variant}-{num_images}-seed{seed}")},
        )
        for variant, settings in VARIANTS.items()
    ]


def train_teacher(student: Config, num_images: int, interrupt: InterruptFlag) -> None:
    """Train the teacher of a part of the images into the folder that the student reads, where it is not there yet."""
    folder = Path(student.teacher.checkpoint)
    if read_result(folder):
        return
    teacher = equal_steps(teacher_config(student), num_images)
    train_run(replace(teacher, {"name": folder.name, "run_dir": str(folder)}), resume=True, interrupt=interrupt)
    shutil.copy(folder / SUMMARY, folder.with_name(f"{folder.name}.{SUMMARY}"))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with CIFAR-100; default data")
    parser.add_argument("--seeds", default="1,2,3", help="comma-separated; default 1,2,3")
    parser.add_argument("--images", default="600,1500,3000,6000", help="comma-separated; default 600,1500,3000,6000")
    parser.add_argument("--out", type=Path, default=Path("runs/data-curves"), help="default runs/data-curves")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of every run")
    options = parser.parse_args(argv)
    changes = {"data.root": str(options.data)} | dict(pair.split("=", 1) for pair in options.set)
    with contextlib.suppress(Interrupted), InterruptFlag().installed() as interrupt:
        for seed in map(int, options.seeds.split(",")):
            for num_images in map(int, options.images.split(",")):
                students = student_configs(num_images, seed, options.out, changes)
                if not interrupt.requested:
                    train_teacher(students[-1], num_images, interrupt)
                    run_seed(students, interrupt)


if __name__ == "__main__":
    main()
