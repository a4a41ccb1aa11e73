"""The attention benchmark runs end to end on the CPU."""

import pytest
import torch
from torch.nn.attention import SDPBackend

from benchmarks import bench_short_attention
from benchmarks.attention_backend import backend_of
from benchmarks.bench_short_attention import PROVIDERS, SHAPES, Shape, bench
from benchmarks.ceilings import Ceilings


def test_rows_have_a_throughput_and_a_ratio_to_the_best_peer():
    rows = list(
        bench("pvt_v2_b0_stage4", 1, "bfloat16", ["lgfast", "math"], torch.device("cpu"), Ceilings(10, 1), rounds=3)
    )
    assert [(row["provider"], row["mode"]) for row in rows] == [
        (provider, mode) for mode in ("fwd", "bwd", "both") for provider in ("lgfast", "math")
    ]
    assert all(row["gb_per_s"] > 0 and row["copy_share"] == row["gb_per_s"] / 10 for row in rows)
    assert all(row["times_best_peer"] == 1 for row in rows if row["provider"] == "math")


@pytest.mark.parametrize(("provider", "factor"), [("lgfast", 1.01), ("math", 1.05)])
def test_a_wrong_output_is_refused(provider, factor, monkeypatch):
    """The batch is larger than the two images that are compared."""
    inputs = bench_short_attention.make_inputs(SHAPES["pvt_v2_b0_stage4"], 3, torch.float32, torch.device("cpu"))
    bench_short_attention.check(provider, *inputs)
    call = PROVIDERS[provider]
    monkeypatch.setitem(PROVIDERS, provider, lambda leaves: factor * call(leaves))
    with pytest.raises(AssertionError, match=r"out: \w+ error"):
        bench_short_attention.check(provider, *inputs)


@pytest.mark.parametrize("backend", ["FLASH_ATTENTION", "MATH"])
def test_the_backend_that_ran_is_named(backend, monkeypatch, capsys):
    """The test forces each backend, which PyTorch chooses by itself elsewhere."""
    monkeypatch.setitem(PROVIDERS, "sdpa", bench_short_attention.sdpa(getattr(SDPBackend, backend)))
    rows = bench("pvt_v2_b0_stage4", 1, "bfloat16", ["lgfast", "sdpa"], torch.device("cpu"), Ceilings(10, 1), rounds=1)
    name = backend.split("_")[0].lower()
    assert {(row["provider"], row["backend"]) for row in rows} == {("lgfast", "lgfast"), ("sdpa", name)}
    assert f"sdpa: PyTorch chooses {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("op", "backend"),
    [
        ("_scaled_dot_product_cudnn_attention", "cudnn"),
        ("_scaled_dot_product_flash_attention", "flash"),
        ("_scaled_dot_product_flash_attention_for_cpu", "flash"),
        ("_scaled_dot_product_efficient_attention", "efficient"),
        ("_scaled_dot_product_cudnn_attention_backward", ""),
        ("_scaled_dot_product_flash_attention_backward", ""),
        ("addmm", ""),
    ],
)
def test_operations_of_attention_are_told_apart(op, backend):
    """The names are PyTorch's, and all of them exist."""
    assert hasattr(torch.ops.aten, op) and backend_of(op) == backend


def test_peers_that_are_not_installed_are_named(capsys):
    device, limits = torch.device("cpu"), Ceilings(10, 1)
    rows = list(bench("digits", 1, "bfloat16", ["lgfast", "fa4"], device, limits, rounds=1))
    assert {row["provider"] for row in rows} == {"lgfast"}
    assert "digits fa4: not available: " in capsys.readouterr().out


def test_bytes_of_deit_tiny():
    """101 KB a head forward: q, k, v read and out written once."""
    assert SHAPES["deit_tiny"] == Shape(heads=3, queries=197, keys=197, head_dim=64)
    fwd, both = (SHAPES["deit_tiny"].num_bytes(1, mode, torch.bfloat16) for mode in ("fwd", "both"))
    assert fwd == 3 * 4 * 197 * 64 * 2 and both == 3 * fwd
