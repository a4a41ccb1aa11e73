"""The benchmark harness: order of timing, percentiles, result files."""

import csv
import time

import pytest
import torch

from benchmarks import bench_feature_mse, harness

CPU = torch.device("cpu")


def test_calls_are_interleaved_after_warm_up():
    order = []
    calls = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    harness.time_interleaved(calls, CPU, rounds=3, warmup=2)
    assert "".join(order) == "aabb" + "ab" * 3


def test_timing_brackets_a_known_duration():
    timing = harness.time_interleaved({"sleep": lambda: time.sleep(0.01)}, CPU, rounds=5, warmup=0)["sleep"]
    assert 10 <= timing.p20_ms <= timing.median_ms <= timing.p80_ms


def test_every_run_writes_its_own_file_with_provenance(tmp_path):
    rows = [{"op": "x", "median_ms": 1.23456, "peak_mib": None}]
    first, second = (harness.write_rows("x", rows, CPU, tmp_path) for _ in range(2))
    assert first != second
    assert first.name.endswith("_x.csv") and second.name.endswith("_x-2.csv")
    (row,) = csv.DictReader(first.open())
    assert row["median_ms"] == "1.235" and row["peak_mib"] == "" and row["torch"] == torch.__version__
    assert row["date"][:10] == first.name[:10] and "commit" in row and f"x{torch.get_num_threads()}" in row["hardware"]


def test_feature_mse_rows_check_agreement_before_timing():
    options = {"batch": 2, "dtype_name": "bfloat16", "device": CPU, "rounds": 2}
    rows = list(bench_feature_mse.bench("deit_tiny", ["torch", "lgfast"], **options))
    assert [(row["mode"], row["provider"]) for row in rows] == [
        ("fwd", "torch"), ("fwd", "lgfast"), ("both", "torch"), ("both", "lgfast")]  # fmt: skip
    with pytest.raises(AssertionError):
        student, teacher = bench_feature_mse.make_maps("deit_tiny", 2, torch.float32, CPU)
        bench_feature_mse.check(lambda s, t: 1.01 * bench_feature_mse.composed(s, t), student, teacher)
