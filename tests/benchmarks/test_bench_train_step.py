"""bench_train_step: every provider trains the same network, and the counts see what they should."""

import pytest
import torch

from benchmarks import bench_train_step as bench
from benchmarks.ceilings import Ceilings
from benchmarks.peers import PaperStep

CPU = torch.device("cpu")
PROVIDERS = ["paper", "amp", "bare", "loop", "lgfast"]


def test_rows_of_every_provider():
    rows = list(bench.bench("digits", PROVIDERS, 2, True, "fp32", CPU, rounds=2, limits=Ceilings(10, 1)))
    assert [row["provider"] for row in rows] == PROVIDERS
    syncs = {row["provider"]: row["host_syncs"] for row in rows}
    assert syncs["paper"] >= 5  # five values; on CPU also AdamW's step count of every parameter
    assert syncs["lgfast"] == syncs["bare"] == syncs["loop"] == 0
    launches = {row["provider"]: row["launches"] for row in rows}
    assert launches["bare"] < launches["amp"] < launches["paper"]  # lgfast and loop also keep meters


def test_providers_give_the_same_loss():
    setup = bench.Setup("digits", 4, True, CPU)
    losses = [float(bench.make_call(provider, setup, "fp32")()) for provider in ("paper", "amp", "bare")]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_a_wrong_step_is_not_timed(monkeypatch):
    setup = bench.Setup("digits", 2, True, CPU)
    bench.check(setup, "fp32")
    monkeypatch.setattr(PaperStep, "guidance", lambda self: torch.tensor(0.5))
    with pytest.raises(AssertionError):
        bench.check(setup, "fp32")


def test_stages_add_up_to_the_step():
    rows = list(bench.bench_stages("digits", 2, "fp32", CPU, rounds=2, limits=Ceilings(10, 1)))
    us = {row["stage"]: row["us_per_image"] for row in rows}
    assert us.pop("step") == pytest.approx(sum(us.values()))
