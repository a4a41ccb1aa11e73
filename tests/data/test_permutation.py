"""The epoch order is a permutation, changes with seed and epoch, and nothing else."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lgfast.data.permutation import epoch_permutation, random_permutation


@settings(deadline=None, max_examples=15)
@given(n=st.integers(0, 500), seed=st.integers(-(2**63), 2**63 - 1), epoch=st.integers(0, 2**31))
def test_is_a_permutation(n, seed, epoch):
    assert torch.equal(epoch_permutation(n, seed, epoch).sort().values, torch.arange(n))


def test_is_a_pure_function_of_seed_and_epoch():
    orders = {(seed, epoch): epoch_permutation(200, seed, epoch) for seed in (0, 1) for epoch in (0, 1)}
    assert torch.equal(orders[0, 0], epoch_permutation(200, 0, 0))
    distinct = {tuple(order.tolist()) for order in (*orders.values(), random_permutation(200, 0))}
    assert len(distinct) == 5


def test_positions_are_uniform():
    # 400 epochs of 16 images: image 0 lands on each position 25 times on average; chi-square(15) < 37.7 at p = 0.001
    positions = torch.stack([(epoch_permutation(16, 3, epoch) == 0).nonzero()[0, 0] for epoch in range(400)])
    counts = torch.bincount(positions, minlength=16).float()
    assert float(((counts - 25) ** 2 / 25).sum()) < 37.7
