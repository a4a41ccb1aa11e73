"""The benchmark of the fused layers runs end to end on the CPU and refuses to time a wrong operation."""

import dataclasses

import pytest
import torch

from benchmarks import bench_fused_layers as bench
from benchmarks.ceilings import Ceilings

CPU = torch.device("cpu")


@pytest.mark.parametrize(("name", "channels", "maps"), [("add_layer_norm", 64, [4, 9]), ("bias_gelu", 256, [2, 5])])
def test_rows_count_every_map_once(name, channels, maps):
    rows = list(bench.bench(name, "digits", 2, "float32", ["eager", "lgfast"], CPU, Ceilings(10, 1), rounds=3))
    assert [(row["mode"], row["provider"]) for row in rows] == [
        (mode, provider) for mode in ("fwd", "both") for provider in ("eager", "lgfast")
    ]
    for row, count in zip(rows, sorted(maps * 2), strict=True):
        assert row["gb_per_s"] * row["median_ms"] * 1e6 == pytest.approx(count * 2 * 65 * channels * 4)
        assert row["times_compile"] is None


def test_a_wrong_operation_is_not_timed(monkeypatch):
    wrong = dataclasses.replace(bench.OPS["bias_gelu"], lgfast=lambda x, bias: (torch.relu(x + bias),))
    monkeypatch.setitem(bench.OPS, "bias_gelu", wrong)
    with pytest.raises(AssertionError):
        next(bench.bench("bias_gelu", "digits", 2, "float32", ["lgfast"], CPU, Ceilings(10, 1), rounds=3))
