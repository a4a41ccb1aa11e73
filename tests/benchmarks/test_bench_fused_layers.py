"""The benchmark of the fused layers runs end to end on the CPU and refuses to time a wrong operation."""

import dataclasses

import pytest
import torch

from benchmarks import bench_fused_layers as bench
from benchmarks.ceilings import Ceilings

CPU = torch.device("cpu")


TOKENS, IMAGE = 65 * 64, 3 * 32 * 32  # elements a sample


@pytest.mark.parametrize(
    ("name", "elements"),
    [
        ("add_layer_norm", [4 * TOKENS, 9 * TOKENS]),
        ("bias_gelu", [2 * 4 * TOKENS, 5 * 4 * TOKENS]),
        ("patch_conv", [IMAGE + 64 * 64, 2 * (IMAGE + 64 * 64)]),
    ],
)
def test_rows_count_every_map_once(name, elements):
    rows = list(bench.bench(name, "digits", 2, "float32", ["eager", "lgfast"], CPU, Ceilings(10, 1), rounds=3))
    assert [(row["mode"], row["provider"]) for row in rows] == [
        (mode, provider) for mode in ("fwd", "both") for provider in ("eager", "lgfast")
    ]
    for row, count in zip(rows, sorted(elements * 2), strict=True):
        assert row["gb_per_s"] * row["median_ms"] * 1e6 == pytest.approx(2 * count * 4)
        assert row["times_compile"] is None


def test_a_wrong_operation_is_not_timed(monkeypatch):
    wrong = dataclasses.replace(bench.OPS["bias_gelu"], lgfast=lambda x, bias: (torch.relu(x + bias),))
    monkeypatch.setitem(bench.OPS, "bias_gelu", wrong)
    with pytest.raises(AssertionError):
        next(bench.bench("bias_gelu", "digits", 2, "float32", ["lgfast"], CPU, Ceilings(10, 1), rounds=3))
