"""The CUDA kernels of flat_adamw in the host emulation, against the reference in plain PyTorch."""

import struct

import pytest
import torch

from lgfast.ops import reference
from lgfast.ops.flat_adamw import hyperparameter_row
from tests.emulation.build import build
from tests.emulation.driver import DTYPES, raw, run_driver

NUMELS = [1, 3000, 2048, 17, 0, 8]  # single elements, a whole block, more than one, an empty tensor
SHIFTS = [0, 0, 1, 3, 0, 0]  # elements by which a gradient misses the alignment of vector loads
GROUPS = [0, 1, 0, 1, 0, 1]
STEPS = [0.0, 3.0, 0.0, 7.0, 1.0, 0.0]  # that each parameter has taken before
GROUP_NUMBERS = [  # hyperparameters of each group
    hyperparameter_row(1e-2, 0.05, (0.9, 0.999), 1e-8),
    hyperparameter_row(3e-3, 0.0, (0.8, 0.95), 1e-6, maximize=True),
]
LOW = [None, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def driver():
    return build("flat_adamw_driver", ["tests/emulation/flat_adamw_driver.cpp"])


def run_both(
    driver, folder, dtype, low, steps=3, seeds=2, max_norm=0.0, skip=False, loss_scale=1.0, found_inf=0.0, poison=None
):
    """Return the emulated and the reference state after `steps` steps on the same gradients."""
    torch.manual_seed(1)
    padded = [-(-n // 8) * 8 for n in NUMELS]
    offsets = [sum(padded[:k]) for k in range(len(padded))]
    params = torch.zeros(sum(padded))
    for n, o in zip(NUMELS, offsets, strict=True):
        params[o : o + n] = torch.randn(n)
    grads = [torch.randn(n + s).to(dtype) for n, s in zip(NUMELS, SHIFTS, strict=True)]
    if poison is not None:
        grads[1][5] = poison
    counts, hyperparameters = torch.tensor(STEPS), torch.tensor(GROUP_NUMBERS, dtype=torch.float64)
    request = struct.pack(
        "9q3d", DTYPES.index(dtype), LOW.index(low), len(NUMELS), len(GROUP_NUMBERS), len(params), steps, seeds, skip,
        4, max_norm, loss_scale, found_inf,
    )  # fmt: skip
    for tensor in zip(offsets, NUMELS, GROUPS, SHIFTS, strict=True):
        request += struct.pack("4q", *tensor)
    request += raw(hyperparameters) + raw(counts) + raw(params) + b"".join(map(raw, grads))
    total = len(params)
    results = [((total,), torch.float32)] * 3
    results += [((total,), torch.int16), ((len(NUMELS),), torch.float32), ((), torch.int64)]
    emulated, _ = run_driver(driver, folder, [request], results)

    moments = torch.zeros(2, total)
    copy = torch.zeros(total, dtype=low or torch.bfloat16)
    skipped = torch.zeros((), dtype=torch.int64)
    for _ in range(steps):
        reference.flat_adamw(
            params, *moments, copy if low else None, counts, skipped,
            [g[s:] for g, s in zip(grads, SHIFTS, strict=True)], offsets, GROUPS, hyperparameters,
            torch.tensor(loss_scale), torch.tensor(found_inf), max_norm, skip,
        )  # fmt: skip
    return emulated, [params, *moments, copy, counts, skipped]


@pytest.mark.parametrize("low", LOW)
@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_kernels_match_reference(driver, tmp_path, dtype, low):
    emulated, expected = run_both(driver, tmp_path, dtype, low, max_norm=1.0, loss_scale=8.0)
    for got, wanted in zip(emulated[:3], expected[:3], strict=True):
        torch.testing.assert_close(got, wanted, rtol=4e-6, atol=1e-7)  # a few float32 roundings over three steps
    assert torch.equal(emulated[4], torch.tensor(STEPS) + 3) and torch.equal(emulated[4], expected[4])
    if low is None:
        assert not emulated[3].any()
    else:  # the copy is exactly the rounded parameter
        assert torch.equal(emulated[3].view(low), emulated[0].to(low))


@pytest.mark.parametrize("bad", [{"skip": True, "poison": float("inf")}, {"found_inf": 1.0}], ids=str)
def test_a_step_with_a_bad_gradient_is_skipped_and_counted(driver, tmp_path, bad):
    emulated, expected = run_both(driver, tmp_path, torch.float16, torch.float16, **bad)
    assert all(torch.equal(a, b) for a, b in zip(emulated[:3], expected[:3], strict=True))
    assert not emulated[1].any()
    assert emulated[4].tolist() == STEPS and emulated[5] == 3
