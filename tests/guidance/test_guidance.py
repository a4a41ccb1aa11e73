"""The guided step equals its definition, written out in float64 with plain PyTorch."""

import copy

import pytest
import torch
from torch.nn import functional as F

from lgfast.data.batch import Batch
from lgfast.guidance import Guidance, GuidedStudent, Teacher
from lgfast.models import create_model
from lgfast.step import Objective, TrainMeter, TrainStep

LAYERS, CHANNELS = (0, 1, 2), (16, 32, 64)


def small_student():
    return create_model(
        "deit_tiny_patch16_224", num_classes=7, image_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3,
        drop_path_rate=0.0,
    )  # fmt: skip


def small_teacher():
    torch.manual_seed(3)
    teacher = create_model("cifar_resnet8", num_classes=7)
    for module in teacher.modules():  # running statistics that differ from those of any batch
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return teacher


def plain_teacher_maps(teacher, images, bn):
    """Stage outputs by walking the CNN's own layers, BatchNorm in train mode for bn=batch."""
    teacher = copy.deepcopy(teacher).train(bn == "batch")
    maps = []
    hooks = []
    for stage in (teacher.layer1, teacher.layer2, teacher.layer3):
        hooks.append(stage.register_forward_hook(lambda module, args, output: maps.append(output.detach())))
    teacher(images)
    for hook in hooks:
        hook.remove()
    return maps


def plain_loss(student, projections, teacher_maps, images, labels, weight):
    """CE + weight * sum_k MSE(up(P_k(tokens as a map)), up(teacher map)), with P_k as a real 1x1 convolution."""
    tokens = []
    hooks = [
        student.blocks[i].register_forward_hook(lambda module, args, output: tokens.append(output)) for i in LAYERS
    ]
    logits = student(images)
    for hook in hooks:
        hook.remove()
    loss = -F.log_softmax(logits, 1)[torch.arange(len(labels)), labels].mean()
    for x, linear, target in zip(tokens, projections, teacher_maps, strict=True):
        x = x[:, 1:].transpose(1, 2).reshape(len(images), -1, 4, 4)
        x = F.conv2d(x, linear.weight[:, :, None, None], linear.bias)
        side = max(x.shape[-1], target.shape[-1])
        x = F.interpolate(x, (side, side), mode="bilinear", align_corners=False)
        target = F.interpolate(target, (side, side), mode="bilinear", align_corners=False)
        loss = loss + weight * (x - target).square().mean()
    return loss


@pytest.mark.parametrize("bn", ["batch", "running"])
@pytest.mark.parametrize("size", [32, 16])
def test_guided_step_matches_plain_float64(bn, size):
    teacher_model = small_teacher().double()
    student = GuidedStudent(small_student(), LAYERS, CHANNELS, 32).double()
    for p in student.model.get_classifier().parameters():  # the recipe's zero head would hide gradients of the body
        torch.nn.init.normal_(p)
    images, labels = torch.randn(6, 3, 32, 32, dtype=torch.float64), torch.randint(7, (6,))
    teacher_images = F.interpolate(images, (size, size), mode="bilinear", align_corners=False)
    expected_student = copy.deepcopy(student)
    expected = plain_loss(
        expected_student.model,
        expected_student.guidance.projections,
        plain_teacher_maps(teacher_model, teacher_images, bn),
        images, labels, 2.5,
    )  # fmt: skip
    expected.backward()

    teacher = Teacher(copy.deepcopy(teacher_model), (0, 1, 2), bn)
    meter = TrainMeter("cpu")
    step = TrainStep(student, teacher, torch.optim.SGD(student.parameters(), lr=0.0), meter, Objective(2.5))
    step(Batch(images, teacher_images, labels, torch.arange(6)))

    assert meter.read(TrainMeter.WINDOW)["loss"] == pytest.approx(expected.item(), rel=1e-12)
    gradients = {name: p.grad for name, p in student.named_parameters()}
    wanted = {name: p.grad for name, p in expected_student.named_parameters()}
    assert gradients.keys() == wanted.keys()
    assert all(g is not None for g in wanted.values())
    torch.testing.assert_close(gradients, wanted, rtol=1e-9, atol=1e-12)


def test_batch_and_running_statistics_differ():
    images = torch.randn(4, 3, 16, 16)
    batch, running = (Teacher(small_teacher(), bn=bn).features(images) for bn in ("batch", "running"))
    assert all(not torch.allclose(a, b) for a, b in zip(batch, running, strict=True))


@pytest.mark.parametrize("bn", ["batch", "running"])
def test_teacher_never_changes(bn):
    model = small_teacher()
    before = copy.deepcopy(dict(model.named_parameters()))
    teacher = Teacher(model, bn=bn)
    images = torch.randn(4, 3, 16, 16, requires_grad=True)
    batch = Batch(images, images, torch.zeros(4, dtype=torch.int64), torch.arange(4))
    first = teacher.start(batch).wait().maps
    second = teacher.start(batch).wait().maps
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)  # batch statistics leave no trace
        assert not a.requires_grad
    torch.testing.assert_close(dict(model.named_parameters()), before, rtol=0, atol=0)


def test_running_statistics_are_folded_into_the_convolutions():
    model = small_teacher()
    images = torch.randn(4, 3, 16, 16)
    teacher = Teacher(model, bn="running")
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in teacher.model.modules())
    assert sum(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules()) == 9  # the caller's is whole
    for ours, plain in zip(teacher.features(images), plain_teacher_maps(model, images, "running"), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def test_resnet18_folds_too():
    model = create_model("resnet18", num_classes=4).eval()
    images = torch.randn(2, 3, 32, 32)
    teacher = Teacher(model, (1, 2, 3), "running")
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in teacher.model.modules())
    plain = model.forward_intermediates(images, indices=[1, 2, 3], intermediates_only=True)
    for ours, expected in zip(teacher.features(images), plain, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["cifar_resnet8", "resnet18"])
def test_stages_come_in_the_order_asked_for_and_as_often(name):
    """timm's forward_intermediates gives each once, in the order of the network."""
    model = create_model(name, num_classes=3).eval()
    images = torch.randn(2, 3, 32, 32)
    for stages in (2, 0, 1), (-1, -1, -1), (1, 1, 2), (0, -1, 1):
        with torch.no_grad():
            alone = [model.forward_intermediates(images, indices=[s], intermediates_only=True)[0] for s in stages]
        teacher = Teacher(copy.deepcopy(model), stages, "running")
        assert teacher.channels(32) == [feature.shape[1] for feature in alone]
        for found, expected in zip(teacher.features(images), alone, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)  # folded normalisation rounds otherwise


def test_unknown_bn_mode_is_refused():
    with pytest.raises(ValueError, match=r"teacher.bn: expected batch, synced or running, got 'eval'"):
        Teacher(small_teacher(), bn="eval")


def test_layers_and_stages_must_pair_up():
    with pytest.raises(ValueError, match="got 2 student layers and 3 teacher stages"):
        GuidedStudent(small_student(), (0, 1), CHANNELS, 32)


def test_projection_initialisation_is_that_of_a_convolution():
    torch.manual_seed(5)
    student = GuidedStudent(small_student(), LAYERS, CHANNELS, 32)
    state = torch.get_rng_state()
    torch.manual_seed(5)
    small_student()
    for projection, width in zip(student.guidance.projections, CHANNELS, strict=True):
        convolution = torch.nn.Conv2d(48, width, 1)
        assert torch.equal(projection.weight, convolution.weight.flatten(1))
        assert torch.equal(projection.bias, convolution.bias)
    assert torch.equal(torch.get_rng_state(), state)


def test_first_step_cross_entropy_is_log_of_the_class_count():
    student = GuidedStudent(small_student())
    meter = TrainMeter("cpu")
    step = TrainStep(student, None, torch.optim.SGD(student.parameters(), lr=0.1), meter)
    step(Batch(torch.randn(5, 3, 32, 32), None, torch.randint(7, (5,)), torch.arange(5)))
    assert meter.read(TrainMeter.WINDOW)["cls_loss"] == pytest.approx(torch.tensor(7.0).log().item(), rel=1e-6)


def resized(maps, side):
    return F.interpolate(maps, (side, side), mode="bilinear", align_corners=False)


def plain_attention(maps):
    flat = (maps**2).sum(1).reshape(len(maps), -1) / maps.shape[1]
    return flat / flat.pow(2).sum(1, keepdim=True).sqrt()


def plain_similarity(maps):
    rows = [torch.stack([(a * b).sum() for b in maps]) for a in maps]
    return torch.stack([row / row.pow(2).sum().sqrt() for row in rows])


@pytest.mark.parametrize(("transform", "plain"), [("attention", plain_attention), ("similarity", plain_similarity)])
def test_variants_match_their_definitions(transform, plain):
    guidance = Guidance((48, 48), (16, 64), transform)
    tokens = [torch.randn(3, 16, 48, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    teachers = [torch.randn(3, 16, 8, 8, dtype=torch.float64), torch.randn(3, 64, 2, 2, dtype=torch.float64)]
    loss = guidance([(x, (4, 4)) for x in tokens], teachers).weighted
    maps = [x.transpose(1, 2).reshape(3, 48, 4, 4) for x in tokens]
    expected = sum(
        (plain(resized(a, side)) - plain(resized(b, side))).square().mean()
        for a, b, side in zip(maps, teachers, (8, 4), strict=True)
    )
    torch.testing.assert_close(loss, expected)
    assert list(guidance.parameters()) == []
    gradients = torch.autograd.grad(loss, tokens)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, tokens), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_unknown_transform_is_refused():
    with pytest.raises(ValueError, match=r"guidance.transform: expected linear, attention or similarity, got 'gram'"):
        Guidance((48,), (16,), "gram")
