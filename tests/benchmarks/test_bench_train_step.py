"""bench_train_step: every provider trains the same network, and the counts see what they should."""

import multiprocessing
from functools import partial

import pytest
import torch

from benchmarks import bench_train_step as bench
from benchmarks.ceilings import Ceilings
from benchmarks.peers import PaperStep
from benchmarks.remote import RemoteCall
from benchmarks.step_calls import check, make_alone, make_call
from benchmarks.step_counts import count
from benchmarks.train_setup import Setup

CPU = torch.device("cpu")
PROVIDERS = ["paper", "amp", "bare", "loop", "lgfast"]


def test_rows_of_providers_in_processes_of_their_own(forked_at_once):
    rows = list(bench.bench("digits", ["amp", "lgfast"], 2, True, "fp32", CPU, rounds=2, limits=Ceilings(10, 1)))
    assert [row["provider"] for row in rows] == ["amp", "lgfast"]
    assert all(row["median_ms"] > 0 and row["cpu_ms"] > 0 and row["host_syncs"] == 0 for row in rows)
    assert rows[0]["backend"] == "flash x6"  # of PyTorch's attention, in each block
    assert multiprocessing.active_children() == []


def test_a_process_tells_what_its_call_raises(forked_at_once):
    call = RemoteCall(partial(make_alone, "lgfast", ("digits", 3, True, CPU), "fp32"))
    call()
    call.close()
    with pytest.raises(KeyError, match="no_shape"):
        RemoteCall(partial(make_alone, "lgfast", ("no_shape", 3, True, CPU), "fp32"))


def test_operations_and_host_reads_of_every_provider():
    setup = Setup("digits", 2, True, CPU)
    counts = {provider: count(make_call(provider, setup, "fp32"), CPU) for provider in PROVIDERS}
    assert counts["paper"].syncs >= 5  # five values; on CPU also AdamW's step count of every parameter
    assert counts["lgfast"].syncs == counts["bare"].syncs == counts["loop"].syncs == 0
    # lgfast and loop also keep meters
    assert counts["bare"].launches < counts["amp"].launches < counts["paper"].launches


def test_providers_give_the_same_loss():
    setup = Setup("digits", 4, True, CPU)
    losses = [float(make_call(provider, setup, "fp32")()) for provider in ("paper", "amp", "bare")]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_a_wrong_step_is_not_timed(monkeypatch):
    setup = Setup("digits", 2, True, CPU)
    check(setup, "fp32")
    monkeypatch.setattr(PaperStep, "guidance", lambda self: torch.tensor(0.5))
    with pytest.raises(AssertionError):
        check(setup, "fp32")


def test_stages_add_up_to_the_step():
    rows = list(bench.bench_stages("digits", 2, "fp32", CPU, rounds=2, limits=Ceilings(10, 1)))
    us = {row["stage"]: row["us_per_image"] for row in rows}
    assert us.pop("step") == pytest.approx(sum(us.values()))
