"""The levels of instructions of the CPU kernels: which there are, which one runs, and that bits stay where promised."""

import importlib
import os

import pytest
import torch

from lgfast import _extension
from lgfast.ops.flat_adamw import hyperparameter_row
from tests.cpu_levels import LEVELS, held_to

pytestmark = pytest.mark.skipif(not _extension.has_native(), reason="lgfast._C is not in use")
ops = torch.ops.lgfast


def test_levels_are_in_order_and_the_lowest_is_always_there():
    order = ["default", "x86-64-v3", "x86-64-v4", "avx512_bf16"]
    assert list(_extension.cpu_levels()) == order[: len(_extension.cpu_levels())]


def test_the_environment_or_the_processor_says_which_level_runs():
    assert _extension.cpu_level() == (os.environ.get("LGFAST_CPU_LEVEL") or _extension.cpu_levels()[-1])


def test_the_environment_holds_the_level(monkeypatch):
    with held_to(_extension.cpu_level()):
        monkeypatch.setenv("LGFAST_CPU_LEVEL", "default")
        _extension._hold_cpu_level()
        assert _extension.cpu_level() == "default"


def test_a_level_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("LGFAST_CPU_LEVEL", "avx512_bf17")
    with pytest.raises(ValueError, match=r"LGFAST_CPU_LEVEL must be one of default.*, got 'avx512_bf17'; unset it"):
        _extension._hold_cpu_level()
    with pytest.raises(ValueError, match="not a level of this processor: avx512_bf17"):
        importlib.import_module("lgfast._C").hold_cpu_level("avx512_bf17")


def at_each_level(compute):
    results = []
    for level in LEVELS:
        with held_to(level):
            results.append(compute())
    return results


@pytest.mark.parametrize(("policy", "num_ops"), [(0, 6), (1, 1), (2, 1)])
def test_augmented_images_have_the_same_bits_at_every_level(policy, num_ops):
    pixels = torch.randint(256, (6 * 32 * 32 * 3,), dtype=torch.uint8)
    sizes, indices = torch.full((6, 2), 32, dtype=torch.int32), torch.arange(6)
    offsets, counter = torch.arange(6) * 32 * 32 * 3, torch.tensor([1, 2])
    random_crops, rand_augment = ([0.08, 1.0], [0.75, 4 / 3]), (num_ops, 0.9, 9.0, 0.5, 10.0, True)
    others = (0.5, policy, [0.3, 0.3, 0.3, 0.2])
    plan = ops.augment_plan(sizes, indices, counter, 48, False, *random_crops, 0.5, 0, 0.25, *rand_augment, *others)
    colours = ([124, 116, 104], [0.49, 0.46, 0.41], [0.23, 0.24, 0.25])

    def compute():
        return ops.augment(pixels, offsets, sizes, indices, plan, 48, 32, 2, 2, *colours, torch.float32, False)

    first, *others = at_each_level(compute)
    assert first[0].std() > 0.1
    assert all(torch.equal(a, b) for other in others for a, b in zip(other, first, strict=True))


def test_adamw_gives_the_same_bits_at_every_level():
    start, grad = torch.randn(4, 1008), torch.randn(1003)
    start[2].abs_()

    def compute():
        params, exp_avg, exp_avg_sq, _ = (row.clone() for row in start)
        state = (params, exp_avg, exp_avg_sq, torch.zeros(1008, dtype=torch.bfloat16))
        counts = (torch.zeros(1), torch.zeros((), dtype=torch.int64))
        numbers = torch.tensor([hyperparameter_row(1e-2, 0.1, (0.9, 0.999), 1e-8)], dtype=torch.float64)
        for _ in range(3):
            ops.flat_adamw(*state, *counts, [grad], [0], [0], numbers, None, None, 1.0, True)
        return state

    first, *others = at_each_level(compute)
    assert not torch.equal(first[0], start[0])
    assert all(torch.equal(a, b) for other in others for a, b in zip(other, first, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 197, 2, 64), (2, 65, 3, 32), (2, 29, 1, 40)])
def test_attention_has_the_same_bits_whatever_the_size_of_its_tiles(shape, dtype):
    q, k, v, dout = torch.randn(4, *shape, dtype=dtype)

    def compute():
        out, lse = ops.short_attention_fwd(q, k, v, 0.2)
        return [out, lse, *ops.short_attention_bwd(dout, q, k, v, out, lse, 0.2)]

    _, *with_fma = at_each_level(compute)
    for results in with_fma[1:]:
        assert all(map(torch.equal, results, with_fma[0]))
