"""The figures of docs/guidance.md are those of the committed runs."""

import re
from pathlib import Path

import pytest

from benchmarks.document_tables.rows import RESULTS, read_csv
from lgfast.config import load_recipe
from lgfast.reports.spread import Spread

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "guidance.md").read_text()
RUNS = RESULTS / "2026-11-30_intel-xeon-x2_cifar100-cpu-best"


def said(row):
    """The second cell of the row that begins so."""
    return re.search(rf"^\| {re.escape(row)} \| ([^|]*) \|", GUIDE, re.MULTILINE)[1]


@pytest.mark.parametrize(
    ("row", "name", "seeds", "epochs"),
    [
        ("`cifar100-cpu-best`", "guided", (1, 2, 3), 15),
        ("`cifar100-cpu-best --epochs 13 --model.init mimetic`", "mimetic", (1, 2, 3), 13),
        ("`cifar100-cpu-best --guidance.weight 0`", "base", (1,), 15),
    ],
)
def test_the_runs_on_test_images(row, name, seeds, epochs):
    found = {row["run"]: row for row in read_csv(RUNS / "results.csv")}
    runs = [f"cifar100-cpu-best-{name}-seed{seed}" for seed in seeds]
    assert said(row) == str(Spread.of(float(found[run]["test_top1"]) for run in runs))
    assert [len(read_csv(RUNS / f"{run}.summary.csv")) for run in runs] == [epochs] * len(seeds)
    teachers = {f"{float(found[run]['teacher_test_top1']):.2f}" for run in runs if found[run]["teacher_test_top1"]}
    assert teachers <= {said("its teacher")}


def test_the_recipe_s_epochs_are_those_of_its_runs():
    assert load_recipe("cifar100-cpu-best").epochs == 15
