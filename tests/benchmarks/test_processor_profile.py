"""processor_profile: which operations a step's processor time goes to."""

import pytest
import torch

from benchmarks import processor_profile


def test_rows_name_the_operations_and_add_up_to_the_step():
    a = torch.randn(16, 16)
    rows = processor_profile.operations(lambda: ((a @ a).relu(), a.exp(), a.exp()), rounds=3, top=2)
    assert [row["mode"] for row in rows] == ["operation", "operation", "operation", "rest", "step"]
    calls = {"aten::mm": 1, "aten::relu": 1, "aten::exp": 2}
    assert all(calls.pop(row["name"]) == row["launches"] for row in rows[:2])
    assert rows[2]["name"] == "1 others" and [rows[2]["launches"]] == list(calls.values()) and rows[4]["launches"] == 4
    assert sum(row["us"] for row in rows[:-1]) == pytest.approx(rows[-1]["us"])
    assert rows[-1]["share"] == 1


def test_a_clock_counts_the_operations_of_backward():
    x = torch.ones(3, requires_grad=True)
    with processor_profile.ProcessorClock() as clock:
        x.exp().sum().backward()
    assert clock.calls["aten::exp"] == 1 and clock.calls["aten::mul"] == 1 and clock.us["aten::mul"] >= 0
