"""The FlatAdamW optimizer: a drop-in for torch.optim.AdamW that resumes exactly."""

import copy
import io

import pytest
import torch

from lgfast.optim.flat_adamw import FlatAdamW
from tests.optim.small_model import assert_same_weights, groups, small_model, train


def test_trains_as_torch_adamw():
    ours, plain = small_model(), small_model()
    train(ours, FlatAdamW(groups(ours), lr=1e-2), 50)
    train(plain, torch.optim.AdamW(groups(plain), lr=1e-2), 50)
    assert_same_weights(ours, plain)


def continued(saved_by, loaded_by):
    """8 steps without a break, and with the last 4 after the way through a file: model, resumed model and optimizer."""
    model, resumed = small_model(), small_model()
    optimizer, resumed_optimizer = saved_by(groups(model), lr=1e-2), loaded_by(groups(resumed), lr=0.5)
    train(model, optimizer, 4)
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    train(model, optimizer, 4, first=4)

    file.seek(0)
    weights, state = torch.load(file)
    resumed.load_state_dict(weights)
    resumed_optimizer.load_state_dict(state)
    train(resumed, resumed_optimizer, 4, first=4)
    return model, resumed, resumed_optimizer


def test_continues_exactly_from_its_own_state():
    model, resumed, optimizer = continued(FlatAdamW, FlatAdamW)
    torch.testing.assert_close(resumed.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert optimizer.steps.tolist() == [8] * 6


def test_continues_from_torch_adamw():
    model, resumed, optimizer = continued(torch.optim.AdamW, FlatAdamW)
    torch.testing.assert_close(resumed.state_dict(), model.state_dict(), rtol=1e-5, atol=1e-6)
    assert optimizer.steps.tolist() == [8] * 6


def test_torch_adamw_continues_from_its_state():
    """torch's AdamW counts each parameter's steps once."""
    model, resumed, optimizer = continued(FlatAdamW, torch.optim.AdamW)
    torch.testing.assert_close(resumed.state_dict(), model.state_dict(), rtol=1e-5, atol=1e-6)
    assert [part["step"].item() for part in optimizer.state.values()] == [8] * 6


def test_parameters_keep_their_values_names_and_shapes():
    model = small_model()
    before = copy.deepcopy(model.state_dict())
    FlatAdamW(model.parameters())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied[0].weight.zero_()
    assert torch.equal(model[0].weight, before["0.weight"])


def test_low_precision_leaves_follow_the_parameters():
    model = small_model()
    optimizer = FlatAdamW(groups(model), lr=1e-2)
    leaves = optimizer.use_low_precision(torch.bfloat16)
    for leaf in leaves:
        leaf.grad = torch.ones_like(leaf)
    before = [p.clone() for p in optimizer.parameters]
    optimizer.step()
    for leaf, p, old in zip(leaves, optimizer.parameters, before, strict=True):
        assert torch.equal(leaf, p.bfloat16())
        assert not torch.equal(p, old)
    optimizer.zero_grad()
    assert all(leaf.grad is None for leaf in leaves)


def scaled_step(model, optimizer, scaler, step, factor, unscales=False):
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
    optimizer.zero_grad()
    scaler.scale(model(x).square().mean() * factor).backward()
    if unscales:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("unscales", [False, True])
def test_grad_scaler_skips_overflows_as_for_torch_adamw(unscales):
    """With steps before, after and between them, and where the user unscales first, as to clip."""
    found = []
    for kind in (FlatAdamW, torch.optim.AdamW):
        model = small_model()
        optimizer = kind(groups(model), lr=1e-2)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
        for step, factor in enumerate([1.0, 1e36, 1.0, 1.0, float("nan"), 1e36, 1.0]):
            scaled_step(model, optimizer, scaler, step, factor, unscales)
        found.append(
            (model.state_dict(), scaler.get_scale(), [part["step"].item() for part in optimizer.state.values()])
        )
    (ours, scale, counts), (plain, expected_scale, expected_counts) = found
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
    assert (scale, counts) == (expected_scale, expected_counts)
    assert counts == [4] * 6


def test_skipped_steps_are_counted():
    model = small_model()
    optimizer, scaler = FlatAdamW(groups(model)), torch.amp.GradScaler("cpu", init_scale=4.0)
    for step, factor in enumerate([float("inf"), 1.0, float("nan")]):
        scaled_step(model, optimizer, scaler, step, factor)
    assert optimizer.num_skipped.item() == 2


def test_an_overflow_in_16_bit_leaves_is_skipped():
    """GradScaler looks only at the parameters."""
    model = small_model()
    optimizer, scaler = FlatAdamW(groups(model)), torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.ones(()))  # as a loss would, makes the scale
    for leaf in optimizer.use_low_precision(torch.bfloat16):
        leaf.grad = torch.full_like(leaf, torch.inf)
    before = copy.deepcopy(model.state_dict())
    scaler.step(optimizer)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert optimizer.num_skipped.item() == 1


def test_a_default_dtype_changes_nothing():
    model = small_model()
    torch.set_default_dtype(torch.float64)
    try:
        optimizer = FlatAdamW(groups(model))
    finally:
        torch.set_default_dtype(torch.float32)
    train(model, optimizer, 1)
    assert optimizer.flat.dtype == torch.float32
