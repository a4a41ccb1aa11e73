"""The augmentation benchmark checks its views against Pillow before it times them."""

import pytest
import torch

from benchmarks import bench_augment as bench
from benchmarks.ceilings import Ceilings

CPU = torch.device("cpu")


def test_rows_count_images_and_bytes():
    rows = list(bench.bench(2, ["lgfast", "pillow"], "float32", CPU, 2, Ceilings(10, 1)))
    assert [row["provider"] for row in rows] == ["lgfast", "pillow"]
    own = rows[0]
    assert own["images_per_s"] == pytest.approx(2e3 / own["median_ms"])
    num_bytes = 2 * (3 * 32 * 32 + 4 * 3 * (224 * 224 + 32 * 32))
    assert own["gb_per_s"] == pytest.approx(num_bytes / own["median_ms"] / 1e6)


def test_other_views_are_not_timed(monkeypatch):
    source = bench.Source(2, CPU, torch.float32)
    source.counter[1] += 1  # the views of another epoch
    with pytest.raises(AssertionError):
        bench.check(source)
