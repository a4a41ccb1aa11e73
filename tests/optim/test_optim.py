"""Schedule values and parameter groups of the recipe."""

import copy
import math

import pytest
import torch

from lgfast.config import load_recipe, replace
from lgfast.guidance import GuidedStudent
from lgfast.models import create_model
from lgfast.optim.build import DeviceSGD, build_optimizer, param_groups, set_learning_rate
from lgfast.optim.schedule import learning_rate

# Values stated by the recipe for the student's schedule.
STUDENT_LR = {
    0: 5.0e-7, 1: 2.5475e-5, 10: 2.5025e-4, 19: 4.75025e-4, 20: 4.9459153e-4, 50: 4.6684124e-4,
    100: 3.7625e-4, 150: 2.525e-4, 200: 1.2875e-4, 250: 3.8158713e-5, 299: 5.0135706e-6,
}  # fmt: skip
TEACHER_LR = {0: 0.1, 1: 0.09999726, 299: 2.7415e-6}


@pytest.mark.parametrize(("epoch", "expected"), STUDENT_LR.items())
def test_student_schedule(epoch, expected):
    optim = load_recipe("cifar100-deit-ti-guided").optim
    assert math.isclose(learning_rate(optim, epoch, 300), expected, rel_tol=2e-7)  # stated to seven digits


@pytest.mark.parametrize(("epoch", "expected"), TEACHER_LR.items())
def test_teacher_schedule(epoch, expected):
    optim = load_recipe("cifar100-resnet56").optim
    assert math.isclose(learning_rate(optim, epoch, 300), expected, rel_tol=1e-4)


@pytest.mark.parametrize(
    ("name", "num_no_decay", "num_decay", "decayed_body_weights"),
    [("deit_tiny_patch16_224", 102, 50, 5_455_872), ("cifar_resnet56", 115, 58, 850_864)],
)
def test_group_counts(name, num_no_decay, num_decay, decayed_body_weights):
    model = create_model(name, num_classes=100)
    decay, no_decay = param_groups(model.named_parameters(), 0.05)
    assert (len(no_decay["params"]), len(decay["params"])) == (num_no_decay, num_decay)
    head = model.get_classifier().weight.numel()
    assert sum(p.numel() for p in decay["params"]) - head == decayed_body_weights
    assert (decay["weight_decay"], no_decay["weight_decay"]) == (0.05, 0.0)


def test_projections_add_three_tensors_to_each_group():
    student = GuidedStudent(create_model("deit_tiny_patch16_224", num_classes=100), (0, 6, 11), (16, 32, 64), 224)
    decay, no_decay = param_groups(student.named_parameters(), 0.05)
    assert (len(no_decay["params"]), len(decay["params"])) == (105, 53)
    assert sum(p.numel() for p in student.guidance.parameters()) == 21_616


def test_frozen_parameters_are_left_out():
    model = torch.nn.Linear(3, 2)
    model.weight.requires_grad_(False)
    decay, no_decay = param_groups(model.named_parameters(), 0.05)
    assert (len(decay["params"]), len(no_decay["params"])) == (0, 1)


def test_a_tensor_learning_rate_is_written_in_place():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))], lr=torch.tensor(0.1))
    storage = optimizer.param_groups[0]["lr"]
    set_learning_rate(optimizer, 0.25)
    assert optimizer.param_groups[0]["lr"] is storage
    assert storage.item() == 0.25


def test_optimizer_matches_plain_adamw():
    optim = load_recipe("cifar100-deit-ti-base").optim
    ours, plain = torch.nn.Linear(5, 4), torch.nn.Linear(5, 4)
    plain.load_state_dict(ours.state_dict())
    optimizer = build_optimizer(ours.named_parameters(), optim)
    reference = torch.optim.AdamW(
        [{"params": [plain.weight], "weight_decay": 0.05}, {"params": [plain.bias], "weight_decay": 0.0}],
        lr=5e-4, betas=(0.9, 0.999), eps=1e-8,
    )  # fmt: skip
    x = torch.randn(7, 5)
    for _ in range(5):
        for model, opt in ((ours, optimizer), (plain, reference)):
            opt.zero_grad()
            model(x).square().sum().backward()
            opt.step()
    torch.testing.assert_close(ours.state_dict(), plain.state_dict())


def test_other_optimizers_come_from_timm():
    optim = replace(load_recipe("cifar100-deit-ti-base"), {"optim.name": "lamb"}).optim
    assert type(build_optimizer(torch.nn.Linear(3, 2).named_parameters(), optim)).__name__ == "Lamb"


@pytest.mark.parametrize(
    ("installed", "reason"),
    [([], "not installed"), (["apex"], r"not what is installed as apex here \(PyPI's apex is another project")],
)
def test_a_missing_apex_says_what_to_install(monkeypatch, installed, reason):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True if name in installed else None)
    optim = replace(load_recipe("cifar100-deit-ti-base"), {"optim.name": "fusedlamb"}).optim
    message = rf"optim.name: fusedlamb needs NVIDIA apex, which is {reason}.*Build it from source.*optim.name=lamb"
    with pytest.raises(ValueError, match=message):
        build_optimizer(torch.nn.Linear(3, 2).named_parameters(), optim)


@pytest.mark.skipif(torch.cuda.is_available(), reason="bitsandbytes may work on a GPU")
@pytest.mark.parametrize("name", ["adahessian", "lookahead_adahessian", "bnbadamw8bit", "bnbsgd"])
def test_an_optimizer_that_cannot_work_here_is_one_line(name):
    optim = replace(load_recipe("cifar100-deit-ti-base"), {"optim.name": name}).optim
    with pytest.raises(ValueError, match=rf"^optim\.name: {name}(: | needs gradients of gradients)") as error:
        build_optimizer(torch.nn.Linear(3, 2).named_parameters(), optim)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["kron", "kronw"])
def test_kron_compiles_nothing_on_a_cpu(name):
    optim = replace(load_recipe("cifar100-deit-ti-base"), {"optim.name": name}).optim
    layer = torch.nn.Linear(3, 2)
    optimizer = build_optimizer(layer.named_parameters(), optim)
    layer(torch.ones(4, 3)).square().sum().backward()
    before, frames = layer.weight.detach().clone(), torch._dynamo.utils.counters["frames"]["total"]
    optimizer.step()
    assert torch._dynamo.utils.counters["frames"]["total"] == frames
    assert not torch.equal(layer.weight, before)


def test_an_unknown_optimizer_gives_near_ones():
    optim = replace(load_recipe("cifar100-deit-ti-base"), {"optim.name": "adamx"}).optim
    with pytest.raises(ValueError, match=r"optim.name: unknown optimizer 'adamx'; did you mean 'adam"):
        build_optimizer(torch.nn.Linear(3, 2).named_parameters(), optim)


def weights_after(optimizer, parameters, steps=4):
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
        set_learning_rate(optimizer, float(optimizer.param_groups[0]["lr"]) * 0.5)
    return [parameter.detach().clone() for parameter in parameters]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_equals_torch(momentum):
    ours, plain = ([torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(4))] for _ in range(2))
    optimizer = DeviceSGD(
        [{"params": ours[:1], "weight_decay": 0.1}, {"params": ours[1:], "weight_decay": 0.0}],
        lr=0.2, momentum=momentum,
    )  # fmt: skip
    reference = torch.optim.SGD(
        [{"params": plain[:1], "weight_decay": 0.1}, {"params": plain[1:]}],
        lr=0.2, momentum=momentum, nesterov=momentum > 0,
    )  # fmt: skip
    torch.testing.assert_close(weights_after(optimizer, ours), weights_after(reference, plain), rtol=1e-6, atol=1e-6)
    assert [group["lr"] for group in optimizer.param_groups] == [group["lr"] for group in reference.param_groups]


def test_sgd_continues_from_its_state():
    first = [torch.nn.Parameter(torch.ones(3, 2))]
    optimizer = DeviceSGD([{"params": first}], lr=0.2, momentum=0.9)
    weights_after(optimizer, first)
    second = [torch.nn.Parameter(first[0].detach().clone())]
    restored = DeviceSGD([{"params": second}], lr=9.0, momentum=0.9)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert torch.equal(*weights_after(optimizer, first), *weights_after(restored, second))
    assert restored.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


def test_a_copy_of_sgd_goes_its_own_way():
    parameter = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = DeviceSGD([{"params": [parameter]}], lr=0.2, momentum=0.9)
    weights_after(optimizer, [parameter])
    copied, copied_optimizer = copy.deepcopy((parameter, optimizer))
    expected = weights_after(optimizer, [parameter])
    assert torch.equal(*weights_after(copied_optimizer, [copied]), *expected)


def test_sgd_survives_a_first_step_that_loss_scaling_skips():
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = build_optimizer([("w", parameter)], replace(load_recipe("digits"), {"optim.name": "sgd"}).optim)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for gradient in (torch.full((2,), torch.inf), torch.ones(2)):
        parameter.grad = scaler.scale(gradient)
        scaler.step(optimizer)
        scaler.update()
    rate = float(optimizer.param_groups[0]["lr"])
    torch.testing.assert_close(parameter.detach(), torch.full((2,), 1 - rate * 1.9))  # gradient and Nesterov's 0.9
