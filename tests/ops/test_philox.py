"""The Philox reference against the published answers, and the independence of its words."""

import pytest
import torch

from lgfast.ops import random as philox

# Known answers of Random123 (kat_vectors): counter, key, words.
KNOWN = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers(counter, key, words):
    assert philox.philox_4x32(torch.tensor(counter), torch.tensor(key)).tolist() == words


def test_words_depend_on_the_sample_alone():
    counter, indices = torch.tensor([-5, 3]), torch.tensor([7, 2**40 + 1, 0])
    together = philox.sample_bits(counter, indices, torch.tensor([0, 9]))
    for row, index in enumerate(indices):
        for column, block in enumerate((0, 9)):
            assert torch.equal(together[row, column], philox.sample_bits(counter, index[None], block)[0])


def test_seed_epoch_index_and_block_all_matter():
    draws = {
        tuple(philox.sample_bits(torch.tensor([seed, epoch]), torch.tensor([index]), block)[0].tolist())
        for seed in (0, 1, 1 << 32)
        for epoch in (0, 1)
        for index in (0, 1, 1 << 32)
        for block in (0, 1)
    }
    assert len(draws) == 3 * 2 * 3 * 2


def test_normal_deviates_have_unit_variance():
    bits = philox.sample_bits(torch.tensor([0, 0]), torch.arange(100_000), 0)
    normal = philox.standard_normal(bits[:, :2])
    assert abs(normal.mean()) < 4 / 100_000**0.5
    assert abs(normal.var() - 1) < 4 * (2 / 100_000) ** 0.5
