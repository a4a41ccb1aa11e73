"""The comparison of two checkouts: what a pair of turns says, and which functions of a checkout it calls."""

import statistics

import numpy as np
import pytest

from benchmarks import before_after


def test_ratios_are_taken_pair_by_pair():
    """A busy moment that slows both turns of a pair leaves the ratio as it is."""
    busy = [1.0, 10.0, 2.0, 5.0, 1.0]
    rows = [{"provider": "loop", "before_cpu_ms": 10 * slow, "after_cpu_ms": 11 * slow} for slow in busy]
    rows.append({"provider": "sweep", "before_cpu_ms": 1.0, "after_cpu_ms": 100.0})
    assert before_after.summary(rows, "loop", "cpu_ms") == (
        "loop cpu_ms: after / before 1.100, quartiles 1.100 to 1.100, 5 pairs"
    )


def test_quartiles_are_numpys():
    ratios = [0.9, 1.0, 1.3, 1.1, 0.8, 1.2, 1.05]
    rows = [{"provider": "loop", "before_ms": 2.0, "after_ms": 2 * ratio} for ratio in ratios]
    text = before_after.summary(rows, "loop", "ms")
    low, high = np.quantile(ratios, [0.25, 0.75], method="weibull")
    assert (
        text == f"loop ms: after / before {statistics.median(ratios):.3f}, quartiles {low:.3f} to {high:.3f}, 7 pairs"
    )


def test_this_checkout_can_be_measured(tmp_path):
    calls = before_after.make_calls(tmp_path)
    assert tuple(calls) == before_after.SUBJECTS
    for call in calls.values():
        assert call(1) is None


def test_a_folder_too_few_is_refused(capsys):
    with pytest.raises(SystemExit):
        before_after.main(["one"])
    assert "FOLDER" in capsys.readouterr().err
