"""The optimizer benchmark: every provider takes the same step, and a wrong one is not timed."""

import pytest
import torch

from benchmarks import bench_optimizer as bench
from benchmarks.ceilings import Ceilings

CPU = torch.device("cpu")
PROVIDERS = ["lgfast", "fused", "foreach", "loop"]


def test_rows_of_every_provider():
    rows = list(bench.bench("cifar_resnet8", PROVIDERS, CPU, 2, Ceilings(10, 1)))
    assert [row["provider"] for row in rows] == PROVIDERS
    for row in rows:
        gb_per_s = 28 * 83_892 / row["median_ms"] / 1e6  # parameters of ResNet-8 with 100 classes
        assert row["gb_per_s"] == pytest.approx(gb_per_s) and row["copy_share"] == pytest.approx(gb_per_s / 10)


def test_another_step_is_not_timed(monkeypatch):
    monkeypatch.setitem(bench.PROVIDERS, "fused", lambda groups: torch.optim.AdamW(groups, lr=1.01 * bench.LR))
    with pytest.raises(AssertionError):
        bench.check("fused", "cifar_resnet8", CPU)
