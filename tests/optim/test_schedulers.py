"""Every scheduler of torch and timm moves FlatAdamW, and the captured step's SGD, as it moves torch's optimizers."""

import inspect

import pytest
import timm.scheduler
import torch
from timm.scheduler.scheduler import Scheduler
from torch.optim import lr_scheduler, swa_utils

from lgfast.optim.build import DeviceSGD
from lgfast.optim.flat_adamw import FlatAdamW
from tests.optim.small_model import assert_same_weights, groups, small_model, train

STEPS = 12


def sequence(optimizer):
    parts = [lr_scheduler.LinearLR(optimizer, total_iters=3), lr_scheduler.ExponentialLR(optimizer, 0.8)]
    return lr_scheduler.SequentialLR(optimizer, parts, milestones=[3])


def chain(optimizer):
    return lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(optimizer, total_iters=4), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    )


TORCH = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, [lambda epoch: 0.9**epoch, lambda epoch: 1 / (1 + epoch)]),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.8),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 5], 0.3),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, total_iters=4),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, total_iters=5),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=8, power=2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 10, eta_min=1e-4),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4),
    "SequentialLR": sequence,
    "ChainedScheduler": chain,
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=1, cooldown=1),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 1e-3, 2e-2, step_size_up=3),  # moves betas too
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, [2e-2, 5e-3], total_steps=STEPS + 1),  # likewise
    "SWALR": lambda o: swa_utils.SWALR(o, swa_lr=1e-3, anneal_epochs=4),
}


class Halving(Scheduler):
    """A schedule of a user's own, of any number of a group."""

    def _get_lr(self, t):
        return [value * 0.5**t for value in self.base_values]


WARM = {"warmup_t": 3, "warmup_lr_init": 1e-6}
TIMM = {
    "CosineLRScheduler": lambda o: timm.scheduler.CosineLRScheduler(o, t_initial=10, lr_min=1e-5, **WARM),
    "CosineLRScheduler, cycles": lambda o: timm.scheduler.CosineLRScheduler(
        o, t_initial=4, cycle_limit=3, cycle_decay=0.5, noise_range_t=(2, 9), noise_pct=0.3, **WARM
    ),
    "StepLRScheduler": lambda o: timm.scheduler.StepLRScheduler(o, 2, 0.5, **WARM),
    "MultiStepLRScheduler": lambda o: timm.scheduler.MultiStepLRScheduler(o, [4, 7], 0.5, **WARM),
    "PolyLRScheduler": lambda o: timm.scheduler.PolyLRScheduler(o, t_initial=10, lr_min=1e-5, **WARM),
    "TanhLRScheduler": lambda o: timm.scheduler.TanhLRScheduler(o, t_initial=10, lr_min=1e-5, **WARM),
    "PlateauLRScheduler": lambda o: timm.scheduler.PlateauLRScheduler(o, patience_t=1, decay_rate=0.5, **WARM),
    "WSDLRScheduler": lambda o: timm.scheduler.WSDLRScheduler(o, t_initial=8, decay_t=4, **WARM),
    "of weight decay": lambda o: Halving(o, "weight_decay"),
}


def test_the_cases_name_every_scheduler():
    classes = {name: kind for name, kind in vars(lr_scheduler).items() if inspect.isclass(kind)}
    of_torch = {name for name, kind in classes.items() if issubclass(kind, lr_scheduler.LRScheduler)}
    assert of_torch - {"LRScheduler", "_LRScheduler"} <= set(TORCH)
    assert {name for name in vars(timm.scheduler) if name.endswith("Scheduler")} - {"Scheduler"} <= set(TIMM)


def follow(scheduler, step):
    """One step of a schedule, whoever made it; the loss stops falling early."""
    loss = 1.0 if step > 1 else 2.0 - step
    if isinstance(scheduler, Scheduler):
        scheduler.step(step + 1, -loss)
    elif isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        scheduler.step(loss)
    else:
        scheduler.step()


def trained(make_optimizer, make_scheduler):
    model = small_model()
    optimizer = make_optimizer(groups(model))
    scheduler, numbers = make_scheduler(optimizer), []
    for step in range(STEPS):
        numbers.append([(group["lr"], group.get("betas"), group["weight_decay"]) for group in optimizer.param_groups])
        train(model, optimizer, 1, first=step)
        follow(scheduler, step)
    return model, numbers


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*:UserWarning", "ignore:PlateauLRScheduler:FutureWarning")
@pytest.mark.parametrize("make_scheduler", (TORCH | TIMM).values(), ids=(TORCH | TIMM).keys())
def test_adamw_follows_every_scheduler_as_torch_adamw_does(make_scheduler):
    ours, numbers = trained(lambda params: FlatAdamW(params, lr=1e-2), make_scheduler)
    plain, expected = trained(lambda params: torch.optim.AdamW(params, lr=1e-2), make_scheduler)
    assert numbers == expected and numbers[0] != numbers[-1]
    assert_same_weights(ours, plain)


@pytest.mark.parametrize("name", ["OneCycleLR", "CosineLRScheduler", "StepLR"])
def test_sgd_follows_schedulers_as_torch_sgd_does(name):
    make_scheduler = (TORCH | TIMM)[name]
    ours, numbers = trained(lambda params: DeviceSGD(params, lr=1e-2, momentum=0.9), make_scheduler)
    plain, expected = trained(
        lambda params: torch.optim.SGD(params, lr=1e-2, momentum=0.9, nesterov=True), make_scheduler
    )
    assert numbers == expected
    assert_same_weights(ours, plain)


def test_a_rate_that_was_read_stays_what_it_was():
    for optimizer in (FlatAdamW(small_model().parameters()), DeviceSGD(groups(small_model()), lr=1e-3, momentum=0.0)):
        (group, *_) = optimizer.param_groups
        base = group["lr"]
        for _ in range(3):
            group["lr"] = base * 0.5
            optimizer.step()
        assert (base, group["lr"]) == (1e-3, 5e-4)
