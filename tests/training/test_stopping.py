"""All ranks stop at one step: what one was asked, the others learn at the exchange that follows the one after it."""

import pytest
import torch

from lgfast.runtime import ranks
from lgfast.runtime.interrupt import InterruptFlag
from lgfast.training.stopping import StopVote

EVERY = 5


@pytest.fixture
def two_ranks(monkeypatch):
    """Votes of two ranks; an exchange gives both the highest of what they brought to it."""
    flags = [InterruptFlag(), InterruptFlag()]
    monkeypatch.setattr(ranks, "world", lambda: 2)
    monkeypatch.setattr(
        ranks, "all_reduce_max", lambda asked: torch.full_like(asked, max(flag.requested for flag in flags))
    )
    return flags, [StopVote(flag, EVERY, torch.device("cpu")) for flag in flags]


def test_ranks_stop_at_one_step_whoever_was_asked(two_ranks):
    flags, votes = two_ranks
    stops = []
    for step in range(1, 4 * EVERY + 1):
        flags[1].requested = step >= 7
        answers = [vote.after_step(step) for vote in votes]
        assert answers[0] == answers[1]
        stops += [step] * answers[0]
    assert stops == [3 * EVERY, 4 * EVERY]  # asked in step 7, brought to the exchange of step 10, known at that of 15


def test_ranks_agree_after_an_epoch(two_ranks):
    flags, votes = two_ranks
    assert [vote.after_epoch() for vote in votes] == [False, False]
    flags[0].requested = True
    assert [vote.after_epoch() for vote in votes] == [True, True]


def test_alone_a_run_stops_at_once():
    flag = InterruptFlag()
    vote = StopVote(flag, EVERY, torch.device("cpu"))
    assert not vote.after_step(1)
    flag.requested = True
    assert vote.after_step(2)
