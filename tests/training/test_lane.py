"""What a lane does around its steps."""

import pytest
import torch

from lgfast.records.run_log import MetricsLog
from lgfast.runtime.interrupt import InterruptFlag
from lgfast.training.lane import Lane
from lgfast.training.random_state import RandomState
from tests.runs import small_loop, tiny_config

UNGUIDED = {"guidance.weight": 0, "augment.teacher_size": 0}


@pytest.mark.parametrize(("optimizer", "own", "step"), [("adamw", 0.5, 0.0), ("sgd", None, 0.5), ("lamb", None, 0.5)])
def test_gradients_are_clipped_once(tmp_path, optimizer, own, step):
    """By the flat optimizer itself, by the step for every other."""
    (lane,) = small_loop(tiny_config(tmp_path, **UNGUIDED | {"optim.name": optimizer, "optim.clip_norm": 0.5})).lanes
    assert getattr(lane.step.optimizer, "max_norm", None) == own
    assert lane.step.precision.clip_norm == step


@pytest.mark.parametrize("ending", ["complete", "saved", "failed", "pruned"])
def test_a_lane_closes_its_log_however_it_ends(tmp_path, monkeypatch, ending):
    closed, flag = [], InterruptFlag()
    monkeypatch.setattr(MetricsLog, "close", lambda log: closed.append(log))
    loop = small_loop(tiny_config(tmp_path, **UNGUIDED | {"epochs": 2}), flag)
    (lane,) = loop.lanes
    if ending == "failed":
        monkeypatch.setattr(Lane, "log_step", lambda lane: (_ for _ in ()).throw(ValueError("broken")))
    loop.on_epoch = lambda lane, row: ending == "pruned"
    flag.requested = ending == "saved"
    loop.run()
    assert (lane.status, closed) == (ending, [lane.log])
    assert (lane.error is not None) == (ending in ("saved", "failed"))


def test_lanes_have_random_numbers_of_their_own():
    torch.manual_seed(1)
    first = RandomState()
    expected = torch.rand(4)
    torch.manual_seed(2)
    second = RandomState()
    other = torch.rand(4)
    drawn = {first: [], second: []}
    for lane in (first, second, second, first, first, first, second, second):
        with lane.in_use():
            drawn[lane].append(torch.rand(1))
    assert torch.equal(torch.cat(drawn[first]), expected) and torch.equal(torch.cat(drawn[second]), other)
