"""The generator gives the published Philox 4x32-10 numbers."""

import pytest
import torch

from lgfast.ops.reference.philox import philox_4x32

# known answers of the Random123 distribution (kat_vectors): counter, key, output
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text):
    return torch.tensor([int(word, 16) for word in text.split()])


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_matches_published_numbers(counter, key, expected):
    assert torch.equal(philox_4x32(words(counter), words(key)), words(expected))
