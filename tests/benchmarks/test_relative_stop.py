"""The table from which the threshold of guidance.stop=relative was chosen is that of the committed losses."""

import csv
import re
from pathlib import Path

from lgfast.guidance.stopping import RELATIVE_THRESHOLD, guidance_stop

ROOT = Path(__file__).resolve().parents[2]
RUNS = {
    "cifar100-cpu-guided": "2026-11-28_amd-epyc-x2_cifar100-cpu-2/cifar100-cpu-guided-seed*.summary.csv",
    "cifar100-cpu-best": "2026-11-30_intel-xeon-x2_cifar100-cpu-best/*-guided-seed*.summary.csv",
    "digits": "2026-11-28_amd-epyc-x2_digits-demo/digits-guided-seed*.summary.csv",
}
THRESHOLDS = (-1.0, -0.5, -0.3, -0.2, -0.1)
PUBLISHED = (108 / 300, 188 / 300)  # shares of a run after which the published rule ended


def losses_of(name):
    """The guidance losses of every seed of a run."""
    files = sorted((ROOT / "benchmarks" / "results").glob(RUNS[name]))
    assert len(files) == 3
    return [[float(row["guidance_loss"]) for row in csv.DictReader(file.open())] for file in files]


def last_guided(losses, threshold, stop="relative"):
    rule = guidance_stop(stop, threshold, len(losses))
    for epoch, loss in enumerate(losses, start=1):
        rule.append(loss)
        if rule.is_over():
            return epoch
    return None


def test_the_table_says_where_each_threshold_ends():
    text = (ROOT / "docs" / "guidance.md").read_text()
    for name in RUNS:
        cells = re.search(rf"^\| `{name}`, three seeds \| (\d+ \|.*) \|$", text, re.MULTILINE)[1].split(" | ")
        runs = losses_of(name)
        assert {len(losses) for losses in runs} == {int(cells[0])}
        for threshold, cell in zip(THRESHOLDS, cells[1:], strict=True):
            ends = sorted({last_guided(losses, threshold) for losses in runs})
            assert cell == " to ".join(map(str, [ends[0], ends[-1]][: len(ends)]))


def test_the_published_rule_would_have_ended_none_of_them():
    assert {last_guided(losses, None, "adaptive") for name in RUNS for losses in losses_of(name)} == {None}


def test_the_default_ends_within_the_published_shares_of_a_run_and_its_neighbours_do_not():
    def is_within(threshold):
        ends = [(last_guided(losses, threshold), losses) for name in RUNS for losses in losses_of(name)]
        return all(PUBLISHED[0] <= end / len(losses) <= PUBLISHED[1] for end, losses in ends)

    assert [threshold for threshold in THRESHOLDS if is_within(threshold)] == [RELATIVE_THRESHOLD]


def test_most_of_the_fall_lies_behind_the_default():
    for name in RUNS:
        for losses in losses_of(name):
            fall = (losses[0] - losses[last_guided(losses, None) - 1]) / (losses[0] - losses[-1])
            assert 0.885 < fall < 0.955
