"""The figures of docs/guidance.md are those of the committed runs."""

import csv
import re
from pathlib import Path

import pytest

from lgfast.reports.spread import Spread

ROOT = Path(__file__).resolve().parents[2]
RUNS = ROOT / "benchmarks" / "results" / "2026-11-30_intel-xeon-x2_cifar100-cpu-best"
GUIDE = (ROOT / "docs" / "guidance.md").read_text()


def last_top1(name):
    with (RUNS / f"{name}.summary.csv").open(newline="") as file:
        return float(list(csv.DictReader(file))[-1]["val_top1"])


def said(row):
    """Return the second cell of the row that begins with this text."""
    return re.search(rf"^\| {re.escape(row)} \| ([^|]*) \|", GUIDE, re.MULTILINE)[1]


@pytest.mark.parametrize(
    ("row", "run"),
    [
        ("guided", "guided"),
        ("guided, standardised distillation", "distill"),
        ("guided, Muon", "muon"),
        ("guided, Muon, standardised distillation", "muon-distill"),
        ("guided, Muon at twice the rate, standardised distillation", "muon-distill-lr2"),
    ],
)
def test_what_was_compared_on_validation_images(row, run):
    assert said(row) == f"{last_top1(f'chosen-on-validation-{run}'):.2f}"


def test_the_recipe_on_test_images():
    with (RUNS / "results.csv").open(newline="") as file:
        found = {row["run"]: row for row in csv.DictReader(file)}
    seeds = [found[f"cifar100-cpu-best-guided-seed{seed}"] for seed in (1, 2, 3)]
    assert said("`cifar100-cpu-best`") == str(Spread.of(float(row["test_top1"]) for row in seeds))
    unguided = float(found["cifar100-cpu-best-base-seed1"]["test_top1"])
    assert said("the same without guidance (`--guidance.weight 0`)") == f"{unguided:.2f}"
    assert {said("its teacher")} == {f"{float(row['teacher_test_top1']):.2f}" for row in seeds}
