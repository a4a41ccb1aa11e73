"""The benchmark harness: order of timing, percentiles, result files."""

import csv
import importlib
import re
import subprocess
import time

import pytest
import torch

from benchmarks import (
    bench_feature_mse,
    bench_optimizer,
    bench_short_attention,
    bench_sweep,
    bench_train_step,
    ceilings,
    harness,
    row_file,
    tables,
)
from benchmarks.ceilings import Ceilings

CPU = torch.device("cpu")


def test_calls_are_interleaved_after_warm_up():
    order = []
    calls = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    harness.time_interleaved(calls, CPU, rounds=3, warmup=2)
    assert "".join(order) == "aabb" + "ab" * 3


BENCHES = ("augment", "feature_mse", "fused_layers", "loader", "optimizer", "short_attention", "sweep", "train_step")


@pytest.mark.parametrize("name", BENCHES)
def test_every_option_of_a_benchmark_says_what_it_takes(name, capsys):
    main = importlib.import_module(f"benchmarks.bench_{name}").main
    with pytest.raises(SystemExit):
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split("options:")[1].split())
    flags = re.split(r"(?<= )--(?=[a-z])", text.partition("--help")[2])
    assert [flag for flag in flags if len(flag.split()) < 4] == []


def test_timing_brackets_a_known_duration():
    timing = harness.time_interleaved({"sleep": lambda: time.sleep(0.01)}, CPU, rounds=5, warmup=0)["sleep"]
    assert 10 <= timing.p20_ms <= timing.median_ms <= timing.p80_ms


def test_every_run_writes_its_own_file_with_provenance(tmp_path):
    rows = [{"op": "x", "median_ms": 1.23456, "peak_mib": None}]
    first, second = (row_file.write_rows("x", rows, CPU, tmp_path) for _ in range(2))
    assert first != second
    assert first.name.endswith("_x.csv") and second.name.endswith("_x-2.csv")
    (row,) = csv.DictReader(first.open())
    assert row["median_ms"] == "1.235" and row["peak_mib"] == "" and row["torch"] == torch.__version__
    assert row["date"][:10] == first.name[:10] and "commit" in row and f"x{torch.get_num_threads()}" in row["hardware"]


def test_feature_mse_rows_check_agreement_before_timing():
    options = {"batch": 2, "dtype_name": "bfloat16", "device": CPU, "rounds": 2, "limits": Ceilings(10, 1)}
    rows = list(bench_feature_mse.bench("deit_tiny", ["torch", "lgfast"], **options))
    assert [(row["mode"], row["provider"]) for row in rows] == [
        ("fwd", "torch"), ("fwd", "lgfast"), ("both", "torch"), ("both", "lgfast")]  # fmt: skip
    with pytest.raises(AssertionError):
        student, teacher = bench_feature_mse.make_maps("deit_tiny", 2, torch.float32, CPU)
        bench_feature_mse.check(lambda s, t: 1.01 * bench_feature_mse.composed(s, t), student, teacher)


def test_a_copy_without_history_is_told_its_commit(monkeypatch):
    def fails(*args, **kwargs):
        raise subprocess.CalledProcessError(128, "git")

    monkeypatch.setattr(subprocess, "run", fails)
    monkeypatch.setenv("LGFAST_COMMIT", "abc1234")
    assert row_file.provenance(CPU)["commit"] == "abc1234"
    monkeypatch.delenv("LGFAST_COMMIT")
    assert row_file.provenance(CPU)["commit"] == ""


def test_rows_held_to_a_level_of_instructions_are_of_another_hardware(monkeypatch, tmp_path):
    row = {"provider": "lgfast", "mode": "guided", "shape": "digits B=32", "dtype": "fp32", "images_per_s": 9.0}
    for level in ("", "x86-64-v3"):
        monkeypatch.setenv("LGFAST_CPU_LEVEL", level)
        row_file.write_rows("train_step", [row | {"images_per_s": 9.0 - len(level)}], CPU, tmp_path)
    table = tables.throughput(tmp_path)
    assert "9 images/s" in table and "held to x86-64-v3 | 0 images/s" in table


def test_rows_without_a_kernel_are_kept_apart(monkeypatch, tmp_path):
    """No subject of the README's tables has such a file."""
    monkeypatch.setenv("LGFAST_DISABLE", "short_attention_bwd,augment_plan")
    assert row_file.reduced_by("short_attention") == ["short_attention_bwd"]
    assert row_file.reduced_by("train_step") == ["short_attention_bwd", "augment_plan"]
    assert row_file.reduced_by("feature_mse") == row_file.reduced_by("smoke") == []
    row = {"provider": "lgfast", "mode": "guided", "shape": "deit_tiny_224 B=8", "images_per_s": 9.0}
    path = row_file.write_rows("train_step", [row], CPU, tmp_path)
    (kept,) = csv.DictReader(path.open())
    assert kept["switched_off"] == "short_attention_bwd augment_plan" and "_train_step_reduced" in path.name
    assert "9 images/s" not in tables.throughput(tmp_path)
    monkeypatch.delenv("LGFAST_DISABLE")
    row_file.write_rows("train_step", [row], CPU, tmp_path)
    assert "9 images/s" in tables.throughput(tmp_path)


def exhaust():
    raise torch.OutOfMemoryError("a GPU says so")


def test_a_call_that_runs_out_of_memory_leaves_the_others_timed():
    calls = {"big": exhaust, "small": lambda: time.sleep(0.001)}
    timings = harness.time_interleaved(calls, CPU, rounds=2, warmup=1)
    assert timings["big"] == harness.Timing(error="out of memory")
    assert timings["big"].per_s(10) is None and timings["big"].per_call(4) == timings["big"]
    assert timings["small"].median_ms >= 1 and timings["small"].error == ""


def test_only_a_fragile_call_may_fail_otherwise():
    def broken():
        raise RuntimeError("no kernel image\nand much more")

    calls = {"peer": broken, "own": lambda: time.sleep(0.001)}
    timings = harness.time_interleaved(calls, CPU, rounds=2, fragile=["peer"])
    assert timings["peer"].error == "RuntimeError: no kernel image" and timings["own"].median_ms >= 1
    with pytest.raises(RuntimeError, match="no kernel image"):
        harness.time_interleaved(calls, CPU, rounds=2)


def test_a_provider_that_cannot_be_set_up_is_a_failing_call():
    assert harness.ready(lambda: sum) is sum
    timings = harness.time_interleaved({"big": harness.ready(exhaust)}, CPU, rounds=2)
    assert timings["big"].error == "out of memory"


def test_a_fragile_provider_that_cannot_be_set_up_is_a_failing_call_whatever_the_reason():
    def broken():
        raise RuntimeError("no kernel for this shape")

    timings = harness.time_interleaved({"peer": harness.ready(broken, fragile=True)}, CPU, fragile=["peer"])
    assert timings["peer"].error == "RuntimeError: no kernel for this shape"
    with pytest.raises(RuntimeError, match="no kernel"):
        harness.ready(broken)


def test_a_wrong_peer_is_left_out_and_a_wrong_kernel_is_not(capsys):
    def check(provider):
        assert provider != "wrong", "out: largest error 3"
        if provider == "absent":
            raise RuntimeError("No available kernel")

    assert harness.agreeing(["lgfast", "wrong", "absent", "good"], check, "deit_tiny") == ["lgfast", "good"]
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("deit_tiny wrong: not available: AssertionError: out: largest error 3")
    assert said[1] == "deit_tiny absent: not available: RuntimeError: No available kernel"

    def refuse(provider):
        raise AssertionError

    with pytest.raises(AssertionError):
        harness.agreeing(["lgfast"], refuse, "deit_tiny")


def test_rows_survive_a_shape_that_runs_out_of_memory(tmp_path):
    def rows():
        yield {"op": "x", "shape": "small", "median_ms": 1.0}
        exhaust()

    row_file.record("x", harness.survive(rows(), op="x", shape="large"), CPU, tmp_path)
    kept, failed = csv.DictReader(next(tmp_path.iterdir()).open())
    assert (kept["median_ms"], kept["error"]) == ("1", "")
    assert (failed["shape"], failed["median_ms"], failed["error"]) == ("large", "", "out of memory")


def test_rows_are_on_disk_before_the_run_ends(tmp_path):
    """A run killed at its time limit keeps what it measured."""
    file = row_file.RowFile("x", CPU, tmp_path)
    for number in (1, 2):
        file.add({"op": "x", "median_ms": float(number)})
        assert [row["median_ms"] for row in csv.DictReader(file.path.open())] == ["1", "2"][:number]


def test_shares_of_the_ceilings():
    timing = harness.Timing(median_ms=2.0)
    shares = Ceilings(copy_gb_per_s=100, matmul_tflop_per_s=4).shares(timing, num_bytes=1e8, num_flops=4e9)
    assert shares == pytest.approx(
        {"gb_per_s": 50, "copy_share": 0.5, "tflop_per_s": 2, "matmul_share": 0.5}
    )  # 0.1 GB and 4 GFLOP in 2 ms
    assert Ceilings(1, 1).shares(timing) == {}
    assert set(Ceilings(1, 1).shares(harness.Timing(error="out of memory"), 1e8).values()) == {None}


def test_ceilings_are_read_back_and_those_of_other_hardware_are_not(tmp_path, monkeypatch):
    rows = list(ceilings.measure(CPU, rounds=2, scale=1 / 16))
    path = row_file.write_rows("ceilings", rows, CPU, tmp_path)
    read, measured = ceilings.load(path, CPU), ceilings.from_rows(rows)
    assert vars(read) == pytest.approx(vars(measured), rel=1e-3)  # four digits are kept
    path.write_text(path.read_text().replace(row_file.hardware(CPU), "another processor"))
    monkeypatch.setattr(ceilings, "measure", lambda device: [row | {"gb_per_s": 7, "tflop_per_s": 5} for row in rows])
    assert ceilings.load(path, CPU) == Ceilings(7, 5)


@pytest.mark.parametrize(
    ("bench", "arguments", "message"),
    [
        (bench_feature_mse, "--providers torch,lgfst", "unknown 'lgfst'; known: torch, compile, lgfast"),
        (bench_feature_mse, "--models deit", "unknown 'deit'; known: deit_tiny, pit_ti"),
        (bench_feature_mse, "--rounds 0", "argument --rounds: expected a whole number above 0, got '0'"),
        (bench_short_attention, "--batches 2,-1", "argument --batches: expected a whole number above 0, got '-1'"),
        (bench_train_step, "--batch x", "argument --batch: expected a whole number above 0, got 'x'"),
        (bench_sweep, "--students 1,,2", "argument --students: expected a whole number above 0, got ''"),
        (bench_optimizer, "--models nope", "unknown 'nope'; timm.list_models() lists the names"),
        (bench_train_step, "--guidance maybe", "unknown 'maybe'; known: on, off"),
    ],
)
def test_wrong_options_name_what_is_known(capsys, bench, arguments, message):
    with pytest.raises(SystemExit):
        bench.main(arguments.split())
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_an_absent_gpu_is_named():
    with pytest.raises(SystemExit, match="torch sees no CUDA device; use --device cpu"):
        bench_feature_mse.main(["--device", "cuda"])


def test_one_round_is_its_own_spread():
    timing = harness.time_interleaved({"one": lambda: None}, CPU, rounds=1, warmup=0)["one"]
    assert timing.p20_ms == timing.median_ms == timing.p80_ms > 0
