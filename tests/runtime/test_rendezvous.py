"""Ranks of one start find each other in a store that dead ranks have written to."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch import distributed as dist

from lgfast.runtime.rendezvous import meet

LONG, SHORT = timedelta(seconds=60), timedelta(seconds=0.2)


@pytest.fixture
def connect():
    """Connects to a store, as every rank does."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True)
    return lambda: dist.TCPStore("127.0.0.1", server.port, is_master=False)


def start_ranks(connect, world):
    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(lambda rank: meet(connect(), rank, world, LONG), range(world)))


def test_every_start_has_a_number_of_its_own_on_all_ranks(connect):
    found = [{(start.number, start.is_restart) for start in start_ranks(connect, 3)} for _ in range(3)]
    assert all(len(start) == 1 for start in found) and len(set.union(*found)) == 3


def test_a_start_after_the_run_began_is_a_restart_on_all_ranks(connect):
    first = start_ranks(connect, 2)
    assert [start.is_restart for start in start_ranks(connect, 2)] == [False, False]  # died before it had a folder
    first[0].begin()
    assert [start.is_restart for start in start_ranks(connect, 2)] == [True, True]


@pytest.mark.parametrize("rank", [0, 1])
def test_what_a_dead_rank_left_does_not_answer_for_a_living_one(connect, rank):
    with pytest.raises(dist.DistError):
        meet(connect(), rank, 2, SHORT)  # dies waiting for its peer
    with pytest.raises(dist.DistError):
        meet(connect(), 1 - rank, 2, SHORT)  # its peer comes too late, and dies too
    numbers = {start.number for start in start_ranks(connect, 2)}
    assert len(numbers) == 1


def test_a_missing_rank_is_named(connect):
    with pytest.raises(dist.DistError, match="rank 1 did not come within 0 s"):
        meet(connect(), 0, 2, SHORT)
