"""The error bound accepts what rounding explains and nothing beyond."""

import pytest
import torch

from tests.helpers import assert_as_exact_as_plain, error_bound


def test_bound_is_twice_the_plain_error_plus_the_floor():
    exact = torch.tensor([1.0, -4.0], dtype=torch.float64)
    plain = torch.tensor([1.0, -3.5]).bfloat16()
    assert error_bound(plain, exact) == 2 * 0.5 + 2**-7 * 4 + 2**-18


def test_accepts_rounding_and_rejects_more():
    exact = torch.linspace(-1, 1, 97, dtype=torch.float64)
    plain = exact.bfloat16()
    assert_as_exact_as_plain(exact.bfloat16(), plain, exact)
    with pytest.raises(AssertionError, match=r"dq: largest error 0\.05 exceeds the bound"):
        assert_as_exact_as_plain(exact + 0.05, plain, exact, "dq")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rejects_what_is_not_finite(value):
    exact = torch.ones(3, dtype=torch.float64)
    actual = torch.tensor([1.0, value, 1.0])
    with pytest.raises(AssertionError):
        assert_as_exact_as_plain(actual, exact.bfloat16(), exact)


def test_rejects_another_shape():
    exact = torch.ones(3, dtype=torch.float64)
    with pytest.raises(AssertionError, match="shape"):
        assert_as_exact_as_plain(torch.ones(1), exact.bfloat16(), exact)


def test_accepts_empty_tensors():
    empty = torch.empty(0, 3, dtype=torch.float64)
    assert_as_exact_as_plain(empty.float(), empty.bfloat16(), empty)
