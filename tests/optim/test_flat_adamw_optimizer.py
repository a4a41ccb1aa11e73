"""The FlatAdamW optimizer: a drop-in for torch.optim.AdamW that resumes exactly."""

import copy
import io

import pytest
import torch
from torch import nn

from lgfast.optim.flat_adamw import FlatAdamW


def small_model():
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3))


def groups(model):
    return [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]


def train(model, optimizer, steps, first=0):
    for step in range(first, first + steps):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def test_trains_as_torch_adamw():
    ours, plain = small_model(), small_model()
    train(ours, FlatAdamW(groups(ours), lr=1e-2), 50)
    train(plain, torch.optim.AdamW(groups(plain), lr=1e-2), 50)
    torch.testing.assert_close(ours.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-6)


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
    assert optimizer.step_count.item() == 8


def test_continues_from_torch_adamw():
    model, resumed, optimizer = continued(torch.optim.AdamW, FlatAdamW)
    torch.testing.assert_close(resumed.state_dict(), model.state_dict(), rtol=1e-5, atol=1e-6)
    assert optimizer.step_count.item() == 8


def test_torch_adamw_continues_from_its_state():
    """Counting the steps of each parameter once."""
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


def test_a_scheduler_may_put_numbers_in_place_of_the_rate():
    ours, plain = small_model(), small_model()
    for model, kind in ((ours, FlatAdamW), (plain, torch.optim.AdamW)):
        optimizer = kind(groups(model), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        for step in range(4):
            train(model, optimizer, 1, first=step)
            scheduler.step()
        optimizer.param_groups[0]["lr"] = 0.25
        train(model, optimizer, 1, first=4)
    torch.testing.assert_close(ours.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-6)


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


def test_grad_scaler_hands_over_its_scale_and_skips_on_overflow():
    ours, plain = small_model(), small_model()
    optimizer = FlatAdamW(groups(ours), lr=1e-2, skip_nonfinite=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=100)
    for step in range(3):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        scaler.scale(ours(x).square().mean()).backward()
        if step == 2:
            ours[0].weight.grad[0, 0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
    train(plain, torch.optim.AdamW(groups(plain), lr=1e-2), 2)
    torch.testing.assert_close(ours.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-6)
    assert optimizer.num_skipped.item() == 1
    assert scaler.get_scale() == 512.0


def test_other_dtypes_are_refused():
    with pytest.raises(ValueError, match=r"must be contiguous float32 .* got \[3, 2\] torch.float64"):
        FlatAdamW([nn.Parameter(torch.zeros(3, 2, dtype=torch.float64))])


def test_differing_betas_are_refused():
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))]
    with pytest.raises(ValueError, match=r"betas must be the same in every group"):
        FlatAdamW([{"params": parameters[:1]}, {"params": parameters[1:], "betas": (0.5, 0.9)}])


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"lr": -1.0}, "lr must be at least 0, got -1.0"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0, got -0.1"),
        ({"eps": float("nan")}, "eps must be at least 0, got nan"),
        ({"betas": (0.9, 1.0)}, r"betas must lie in \[0, 1\), got \(0.9, 1.0\)"),
    ],
)
def test_impossible_settings_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        FlatAdamW([torch.zeros(3, requires_grad=True)], **wrong)


def test_what_would_leave_parameters_behind_is_refused():
    model = small_model()
    optimizer = FlatAdamW(groups(model))
    with pytest.raises(ValueError, match="its groups are fixed once it is made"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    with pytest.raises(TypeError, match=r"cannot be copied or pickled; .* load this one's state_dict\(\)"):
        copy.deepcopy(optimizer)
    train(model, optimizer, 1)
    with pytest.raises(RuntimeError, match="parameters were moved or cast after it was made"):
        train(model.double().float(), optimizer, 1)
