"""Train one student with each method beside guidance, under one budget, and judge it on images of CIFAR-100.

    python -m benchmarks.guidance_methods --data DATA --seeds 1,2,3 [--methods guided,muon] [--out runs/methods]

The student of cifar100-cpu-guided learns from 5,000 images for 15 epochs and is judged on 1,000 others, the validation
images; no run touches the test images. Seeds are paired: the runs of one seed see the same views in the same order,
except where the method is other views, and one ResNet-8 teaches all. Methods that may share batches and teacher train
side by side in one process. Ctrl-C saves; the same command goes on. Every finished run leaves its curve beside its
folder. Move the curves into benchmarks/results/DATE_HARDWARE_methods, and `python benchmarks/tables.py` puts them into
docs/guidance.md.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import lgfast.models  # noqa: F401 - registers the students
from lgfast.config import Config, load_recipe, replace
from lgfast.records.run_log import SUMMARY
from lgfast.runtime.interrupt import InterruptFlag
from lgfast.sweep.group import group_key, run_group

ConfigsOf = Callable[[Sequence[str], int, Path, dict[str, Any]], list[Config]]

MUON = {"optim.name": "muon"}
RELATIVE = {"guidance.stop": "relative"}
MIMETIC = {"model.init": "mimetic"}
IMPULSE = {"model.init": "impulse"}
AVERAGED = {"step.ema_decay": 0.999, "step.ema_warmup": "true"}
STANDARDISED = {
    "distill.mode": "soft",
    "distill.standardise": "true",
    "distill.weight": 9,
    "distill.cls_weight": 0.5,
    "distill.temperature": 3,
}
METHODS: dict[str, dict[str, Any]] = {
    "base": {"guidance.weight": 0},
    "guided": {},
    "relative": RELATIVE,
    "distill": STANDARDISED,
    "mimetic": MIMETIC,
    "impulse": IMPULSE,
    "ema": AVERAGED,
    "taps": {"guidance.taps": "learned"},
    "label-smoothing": {"optim.label_smoothing": 0.1},
    "onecycle": {"optim.schedule": "onecycle"},
    "linear": {"optim.schedule": "linear"},
    "constant": {"optim.schedule": "constant"},
    "step": {"optim.schedule": "step", "optim.decay_epochs": 5},
    "wsd": {"optim.schedule": "wsd", "optim.decay_epochs": 5},
    "trivial-augment": {"augment.policy": "trivial_augment"},
    "three-augment": {"augment.policy": "three_augment"},
    "color-jitter": {"augment.color_jitter": "0.3,0.3,0.3,0"},
    "vertical-flip": {"augment.vertical_flip_prob": 0.5},
    "mixup": {"augment.mixup_alpha": 0.8},
    "cutmix": {"augment.cutmix_alpha": 1.0},
    "muon": MUON,
    "muon-relative": MUON | RELATIVE,
    "muon-distill": MUON | STANDARDISED,
    "muon-distill-lr2": MUON | STANDARDISED | {"optim.lr": 2e-3},
    "muon-mimetic": MUON | MIMETIC,
    "muon-impulse": MUON | IMPULSE,
    "muon-ema": MUON | AVERAGED,
}
SETTING = {
    "teacher.recipe": "cifar100-cpu-best-resnet8",
    "eval.protocol": "holdout",
    "eval.holdout_fraction": 1 / 6,
    "eval.every_epochs": 5,
    "log.tensorboard": "false",
    "log.report": "false",  # it would judge the test images
}


def method_configs(methods: Sequence[str], seed: int, out: Path, changes: dict[str, Any]) -> list[Config]:
    """Return a configuration for each method. Methods that do not change the views see the same ones."""
    base = replace(load_recipe("cifar100-cpu-guided"), SETTING | {"seed": seed, "data.seed": seed} | changes)
    return [
        replace(base, METHODS[name] | {"name": name, "run_dir": str(out / f"{name}-seed{seed}")}) for name in methods
    ]


def groups(configs: Sequence[Config]) -> Iterator[list[Config]]:
    """Yield the runs that can train side by side."""
    for _, members in groupby(sorted(configs, key=group_key), group_key):
        yield list(members)


def run_seed(configs: Sequence[Config], interrupt: InterruptFlag) -> None:
    """Train the runs that are not finished, and keep the curves of the finished ones."""
    for members in groups(configs):
        for outcome in run_group(members, interrupt):
            folder = Path(outcome.config.run_dir)
            print(f"{folder.name}: {outcome.status} {outcome.error}", flush=True)
            if outcome.status == "complete":
                shutil.copy(folder / SUMMARY, folder.with_name(f"{folder.name}.{SUMMARY}"))
        if interrupt.requested:
            return


def compare(argv: Sequence[str] | None, about: str, known: Collection[str], configs_of: ConfigsOf, out: str) -> None:
    """Run the command line of a comparison.

    Args:
        about: what `--help` says.
        known: the names that `--methods` takes.
        configs_of: makes the configurations of (methods, seed, folder of the runs, changed keys).
        out: the default folder of the runs.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with CIFAR-100; default data")
    parser.add_argument("--seeds", default="1,2,3", help="comma-separated; default 1,2,3")
    parser.add_argument("--methods", default=",".join(known), help=f"comma-separated, of {', '.join(known)}")
    parser.add_argument("--out", type=Path, default=Path(out), help=f"default {out}")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of every run")
    options = parser.parse_args(argv)
    methods = options.methods.split(",")
    if unknown := sorted(set(methods) - set(known)):
        parser.error(f"--methods: no method {', '.join(unknown)}; known: {', '.join(known)}")
    changes = {"data.root": str(options.data)} | dict(pair.split("=", 1) for pair in options.set)
    with InterruptFlag().installed() as interrupt:
        for seed in map(int, options.seeds.split(",")):
            if not interrupt.requested:
                run_seed(configs_of(methods, seed, options.out, changes), interrupt)


def main(argv: Sequence[str] | None = None) -> None:
    compare(argv, __doc__, METHODS, method_configs, "runs/methods")


if __name__ == "__main__":
    main()
