"""Distillation of logits equals its definition, written out in float64 with plain PyTorch."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from lgfast.assembly.run import train_run
from lgfast.config import DistillConfig, StepConfig
from lgfast.data.batch import Batch
from lgfast.guidance import GuidedStudent, Teacher, distillation_loss
from lgfast.guidance.teacher import TeacherOutputs, TeacherTargets
from lgfast.models import create_model
from lgfast.models.taps import tap_shapes
from lgfast.optim.build import decays
from lgfast.step import Objective, TrainMeter, TrainStep
from tests.runs import metrics, tiny_config

BATCH, CLASSES = 6, 7
LAYERS, CHANNELS = (0, 1, 2), (16, 32, 64)
PLAIN, DISTILLED = "deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"


def small_student(name):
    return create_model(
        name, num_classes=CLASSES, image_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3, drop_path_rate=0.0
    )


def plain_kd(student, teacher, mode, temperature):
    """Element by element, with Python's logarithms."""
    if mode == "hard":
        return -torch.stack([row.log_softmax(0)[t.argmax()] for row, t in zip(student, teacher, strict=True)]).mean()
    p, q = ((x / temperature).exp() / (x / temperature).exp().sum(1, keepdim=True) for x in (teacher, student))
    return (p * (p.log() - q.log())).sum() * temperature**2 / (len(student) * student.shape[1])


@pytest.mark.parametrize(("mode", "temperature"), [("soft", 1.0), ("soft", 3.0), ("hard", 1.0)])
def test_loss_and_gradient_match_the_definition(mode, temperature):
    student = torch.randn(BATCH, CLASSES, dtype=torch.float64, requires_grad=True)
    teacher = 3 * torch.randn(BATCH, CLASSES, dtype=torch.float64)
    loss = distillation_loss(student, teacher, mode, temperature)
    expected = plain_kd(student, teacher, mode, temperature)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    (ours,), (theirs,) = torch.autograd.grad(loss, student), torch.autograd.grad(expected, student)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_standardised_loss_and_gradient_match_the_definition(temperature):
    student = torch.randn(BATCH, CLASSES, dtype=torch.float64, requires_grad=True)
    teacher = 5 + 3 * torch.randn(BATCH, CLASSES, dtype=torch.float64)
    loss = distillation_loss(student, teacher, "soft", temperature, standardise=True)
    expected = 0.0
    for row, target in zip(student, teacher, strict=True):
        p, q = ((z / temperature).exp() / (z / temperature).exp().sum() for z in map(plain_standardised, (target, row)))
        expected = expected + (p * (p.log() - q.log())).sum() * temperature**2 / BATCH
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    (ours,), (theirs,) = torch.autograd.grad(loss, student), torch.autograd.grad(expected, student)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-14)


def plain_standardised(row):
    mean = sum(row) / len(row)
    deviation = (sum((value - mean) ** 2 for value in row) / (len(row) - 1)) ** 0.5
    return (row - mean) / (deviation + 1e-7)


def test_standardised_loss_does_not_see_shift_and_size_of_logits():
    student, teacher = torch.randn(4, CLASSES), torch.randn(4, CLASSES)
    loss = distillation_loss(student, teacher, "soft", 2.0, standardise=True)
    changed = distillation_loss(7 * student - 3, 0.2 * teacher + 9, "soft", 2.0, standardise=True)
    torch.testing.assert_close(changed, loss, rtol=1e-4, atol=1e-6)
    assert loss > 0.1


def test_equal_logits_have_no_spread_to_divide_by():
    flat = torch.ones(4, CLASSES, requires_grad=True)
    distillation_loss(flat, torch.randn(4, CLASSES), "soft", standardise=True).backward()
    assert flat.grad.isfinite().all()


def test_factors_of_the_losses_are_those_of_the_configuration():
    logits, labels = torch.randn(BATCH, CLASSES), torch.randint(CLASSES, (BATCH,))
    targets = TeacherTargets(TeacherOutputs((), torch.randn(BATCH, CLASSES)))
    for distill, cls_factor in (
        (DistillConfig("soft", weight=0.3), 0.7),
        (DistillConfig("soft", temperature=3.0, weight=9.0, cls_weight=0.5, standardise=True), 0.5),
    ):
        losses, _ = Objective(distill=distill)(logits, None, labels, targets)
        torch.testing.assert_close(losses.total, cls_factor * losses.cls + distill.weight * losses.distill)


def test_soft_loss_is_zero_for_equal_logits_only():
    logits = torch.randn(4, CLASSES)
    assert distillation_loss(logits, logits + 1, "soft", 2.0).abs() < 1e-6  # a shift changes no probability
    assert distillation_loss(logits, -logits, "soft", 2.0) > 0.01


def plain_step_loss(student, projections, teacher, batch, distill, guidance_weight):
    """The whole loss of a step, from hooks on both networks and the student's own heads; and its distillation part."""
    tokens, maps = [], []
    for block in student.blocks:
        block.register_forward_hook(lambda module, args, output: tokens.append(output))
    for stage in (teacher.layer1, teacher.layer2, teacher.layer3):
        stage.register_forward_hook(lambda module, args, output: maps.append(output.detach()))
    teacher_logits = teacher(batch.teacher_images).detach()
    features = student.forward_features(batch.images)
    logits = distilled = student.head(features[:, 0])
    num_prefix = 1
    if hasattr(student, "head_dist"):
        distilled, num_prefix = student.head_dist(features[:, 1]), 2
    cls_loss = -F.log_softmax(logits, 1)[torch.arange(len(logits)), batch.labels].mean()
    distill_loss = plain_kd(distilled, teacher_logits, distill.mode, distill.temperature)
    loss = cls_loss * (1 - distill.weight) + distill.weight * distill_loss
    if guidance_weight:
        for x, linear, target in zip(tokens, projections, maps, strict=True):
            x = x[:, num_prefix:].transpose(1, 2).unflatten(2, (4, 4))
            x = F.conv2d(x, linear.weight[:, :, None, None], linear.bias)
            side = max(x.shape[-1], target.shape[-1])
            x, target = (F.interpolate(m, (side, side), mode="bilinear", align_corners=False) for m in (x, target))
            loss = loss + guidance_weight * (x - target).square().mean()
    return loss, distill_loss


def random_heads(model):
    """The recipe's zero heads would hide gradients of the body."""
    for name, parameter in model.named_parameters():
        if name.startswith(("head.weight", "head_dist.weight", "fc.weight")):
            torch.nn.init.normal_(parameter)
    return model


def build_step(name, distill, guidance_weight=2.5, bn="batch", dtype=torch.float64, **options):
    """A step, and the CNN as its teacher was before."""
    torch.manual_seed(1)
    cnn = random_heads(create_model("cifar_resnet8", CLASSES)).to(dtype)
    model = random_heads(small_student(name))
    if name == DISTILLED:
        model.set_distilled_training(True)
    student = GuidedStudent(model, *(LAYERS, CHANNELS) if guidance_weight else (), image_size=32).to(dtype).train()
    teacher = Teacher(copy.deepcopy(cnn), bn=bn, gives_logits=True)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.0)
    step = TrainStep(
        student, teacher, optimizer, TrainMeter("cpu"), Objective(guidance_weight, distill=distill),
        options=StepConfig(**options),
    )  # fmt: skip
    return step, cnn


def random_batch(dtype=torch.float64):
    images = torch.randn(BATCH, 3, 32, 32, dtype=dtype)
    return Batch(images, images[:, :, ::2, ::2].contiguous(), torch.randint(CLASSES, (BATCH,)), torch.arange(BATCH))


@pytest.mark.parametrize("name", [PLAIN, DISTILLED])
@pytest.mark.parametrize("mode", ["soft", "hard"])
@pytest.mark.parametrize("guidance_weight", [0.0, 2.5])
@pytest.mark.parametrize("bn", ["batch", "running"])
def test_step_matches_plain_float64(name, mode, guidance_weight, bn):
    distill = DistillConfig(mode, temperature=2.0, weight=0.3)
    step, cnn = build_step(name, distill, guidance_weight, bn)
    student, batch = copy.deepcopy(step.student), random_batch()
    projections = student.guidance.projections if guidance_weight else None
    loss, distill_loss = plain_step_loss(
        student.model, projections, cnn.train(bn == "batch"), batch, distill, guidance_weight
    )
    loss.backward()
    step(batch)
    row = step.meter.read(TrainMeter.WINDOW)
    assert row["loss"] == pytest.approx(loss.item(), rel=1e-12)
    assert row["distill_loss"] == pytest.approx(distill_loss.item(), rel=1e-12)
    gradients = {key: p.grad for key, p in step.student.named_parameters()}
    wanted = {key: p.grad for key, p in student.named_parameters()}
    assert all(g is not None for g in wanted.values())
    torch.testing.assert_close(gradients, wanted, rtol=1e-9, atol=1e-12)


def test_accumulation_equals_one_big_batch():
    distill, batch = DistillConfig("soft", temperature=2.0), random_batch()
    steps = [build_step(DISTILLED, distill, accumulate=count)[0] for count in (1, 3)]
    for step in steps:
        step(batch)
    whole, parts = (step.meter.read(TrainMeter.WINDOW) for step in steps)
    assert parts == pytest.approx(whole, rel=1e-12)
    whole, parts = ([p.grad for p in step.student.parameters()] for step in steps)
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("precision", ["bf16", "fp16-amp"])
def test_low_precision_follows_fp32(precision):
    batch = random_batch(torch.float32)
    step = build_step(DISTILLED, DistillConfig("soft"), dtype=torch.float32)[0]
    student = copy.deepcopy(step.student)
    low = TrainStep(
        student, step.teacher, torch.optim.SGD(student.parameters(), lr=0.0), TrainMeter("cpu"),
        Objective(2.5, distill=DistillConfig("soft")), precision=precision,
    )  # fmt: skip
    step(batch), low(batch)
    ours, expected = low.meter.read(TrainMeter.WINDOW), step.meter.read(TrainMeter.WINDOW)
    for name in ("loss", "distill_loss"):
        assert ours[name] == pytest.approx(expected[name], rel=2**-5)  # logits of order ten, rounded to 2**-9


def test_the_classifier_of_a_teacher_runs_only_where_it_is_distilled(monkeypatch):
    step = build_step(PLAIN, DistillConfig("soft"))[0]
    calls = []
    monkeypatch.setattr(step.teacher.model, "forward_head", lambda x: calls.append(1) or torch.zeros(len(x), CLASSES))
    step(random_batch())
    step.teacher.gives_logits, step.objective = False, Objective(2.5)
    step(random_batch())
    assert len(calls) == 1


def test_distilled_student_averages_its_heads_at_test():
    model = random_heads(small_student(DISTILLED))
    model.set_distilled_training(True)
    images = torch.randn(3, 3, 32, 32)
    by_class, by_token = model.train()(images)
    torch.testing.assert_close(model.eval()(images), (by_class + by_token) / 2)
    assert not torch.allclose(by_class, by_token)


def test_distilled_student_is_initialised_as_the_plain_one():
    model = small_student(DISTILLED)
    assert all(not p.any() for head in (model.head, model.head_dist) for p in head.parameters())
    for token in (model.cls_token, model.dist_token):
        assert 0.01 < token.std() < 0.03
    assert not decays("dist_token", model.dist_token)
    assert tap_shapes(model, LAYERS, 32) == [(48, (4, 4))] * 3


@pytest.mark.parametrize("model", [PLAIN, DISTILLED])
def test_a_run_without_guidance_is_distilled(tmp_path, model):
    changes = {"guidance.weight": 0, "distill.mode": "soft", "max_steps": 8, "model.name": model}
    result = train_run(tiny_config(tmp_path, **changes))
    rows = metrics(tmp_path / "run")
    assert result.teacher_run is not None
    assert all(row["distill_loss"] > 0 and row["guidance_loss"] == 0 for row in rows)
    assert all(math.isclose(row["loss"], (row["cls_loss"] + row["distill_loss"]) / 2, rel_tol=1e-6) for row in rows)
