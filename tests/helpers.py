"""The error bound that every low-precision result in the tests is held to."""

import torch
from torch import Tensor


def error_bound(plain: Tensor, exact: Tensor) -> float:
    """Twice the largest error of plain PyTorch, plus a rounding floor.

    Args:
        plain: what plain PyTorch computes in the low precision under test (its dtype sets the floor).
        exact: the same in float64.
    Returns:
        2 max|plain - exact| + eps(plain.dtype) max|exact| + 2**-18. The floor is two roundings of the largest value,
        and, for results that cancel to zero, some float32 roundings of terms of order one.
    """
    floor = torch.finfo(plain.dtype).eps * exact.abs().max().item() + 2**-18
    return 2 * (plain.double() - exact).abs().max().item() + floor


def assert_as_exact_as_plain(actual: Tensor, plain: Tensor, exact: Tensor, name: str = "result") -> None:
    """Asserts that `actual` errs from `exact` by no more than `error_bound(plain, exact)`."""
    assert actual.shape == exact.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(exact.shape)}"
    if exact.numel() == 0:
        return
    error = (actual.double() - exact).abs().max().item()  # NaN fails the comparison
    bound = error_bound(plain, exact)
    assert error <= bound, f"{name}: largest error {error:.3g} exceeds the bound {bound:.3g}"
