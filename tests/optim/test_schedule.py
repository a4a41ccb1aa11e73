"""Learning rates equal those of timm's and torch's schedulers."""

import pytest
import torch
from timm.scheduler import CosineLRScheduler, PolyLRScheduler, StepLRScheduler

from lgfast.config import Config, OptimConfig, replace
from lgfast.optim.schedule import learning_rate

EPOCHS, WARMUP = 40, 5
CONFIG = {"lr": 0.2, "min_lr": 0.002, "warmup_epochs": WARMUP, "warmup_factor": 0.01, "decay_epochs": 12}
WARM = {"warmup_t": WARMUP, "warmup_lr_init": 0.002, "lr_min": 0.002}


def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2)


def ours(schedule, **changes):
    config = OptimConfig(schedule=schedule, **(CONFIG | changes))
    return [learning_rate(config, epoch, EPOCHS) for epoch in range(EPOCHS)]


def timms(kind, **arguments):
    opt = optimizer()
    scheduler = kind(opt, **arguments)
    rates = []
    for epoch in range(EPOCHS):
        scheduler.step(epoch)
        rates.append(opt.param_groups[0]["lr"])
    return rates


def test_cosine_is_timms_without_a_shift_by_the_warm_up():
    assert ours("cosine") == pytest.approx(timms(CosineLRScheduler, t_initial=EPOCHS, **WARM), rel=1e-9)


def test_linear_is_timms_polynomial_of_power_one():
    theirs = timms(PolyLRScheduler, t_initial=EPOCHS - WARMUP, power=1.0, warmup_prefix=True, **WARM)
    assert ours("linear") == pytest.approx(theirs, rel=1e-9)


def test_step_is_timms():
    warm = {name: value for name, value in WARM.items() if name != "lr_min"}
    theirs = timms(StepLRScheduler, decay_t=12, decay_rate=0.1, **warm)
    assert ours("step", min_lr=0.0) == pytest.approx(theirs, rel=1e-9)
    assert min(ours("step", min_lr=0.01)) == 0.2 * 0.01  # the warm-up's begin; later rates stay above min_lr
    assert min(ours("step", min_lr=0.01)[WARMUP:]) == 0.01


def test_onecycle_is_torchs():
    opt = optimizer()
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        opt, max_lr=0.2, total_steps=EPOCHS + 1, pct_start=(WARMUP + 1) / (EPOCHS + 1), div_factor=100,
        final_div_factor=1.0,
    )  # fmt: skip
    theirs = []
    for _ in range(EPOCHS):
        theirs.append(opt.param_groups[0]["lr"])
        opt.step()
        scheduler.step()
    assert ours("onecycle") == pytest.approx(theirs, rel=1e-9)


def test_constant_and_stable_phases_keep_the_rate():
    assert ours("constant")[WARMUP:] == pytest.approx([0.2] * (EPOCHS - WARMUP))
    rates = ours("wsd")
    assert rates[WARMUP : EPOCHS - 12 + 1] == pytest.approx([0.2] * (EPOCHS - 12 + 1 - WARMUP))
    assert rates[-1] == pytest.approx(0.002 + 0.198 / 12)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "step", "onecycle", "wsd"])
def test_every_schedule_warms_up_alike_and_is_continuous_at_its_end(schedule):
    rates = ours(schedule, warmup_epochs=0)
    assert rates[0] == pytest.approx(0.2)
    config = OptimConfig(schedule=schedule, **CONFIG)
    before, after = learning_rate(config, WARMUP - 1e-9, EPOCHS), learning_rate(config, WARMUP, EPOCHS)
    if schedule != "cosine":  # whose paper's form falls by then
        assert after == pytest.approx(before, rel=1e-6)
    assert learning_rate(config, 0, EPOCHS) == pytest.approx(0.002)


@pytest.mark.parametrize(("schedule", "most"), [("wsd", 12), ("step", 11)])
def test_a_fall_fits_between_warm_up_and_end(schedule, most):
    run = {"epochs": 15, "optim.warmup_epochs": 3, "optim.schedule": schedule}
    assert replace(Config(), run | {"optim.decay_epochs": most}).optim.decay_epochs == most
    with pytest.raises(ValueError, match=rf"optim.decay_epochs: with .*{schedule} expected at most {most}, .*got 30"):
        replace(Config(), run)
