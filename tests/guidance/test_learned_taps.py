"""Learned taps: one weighted mean of all blocks a teacher stage, against plain float64 PyTorch."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from lgfast.assembly.images import load_images
from lgfast.assembly.networks import build_student
from lgfast.assembly.run import train_run
from lgfast.assembly.teachers import check_student
from lgfast.guidance import GuidedStudent
from lgfast.guidance.teacher import TeacherOutputs, TeacherTargets
from lgfast.models import create_model
from lgfast.optim.build import param_groups
from lgfast.runtime.interrupt import Interrupted
from tests.runs import StopAt, tiny_config

CHANNELS = (16, 32, 64)


def small_student():
    return create_model(
        "deit_tiny_patch16_224", num_classes=7, image_size=32, patch_size=8, embed_dim=48, depth=4, num_heads=3,
        drop_path_rate=0.0,
    )  # fmt: skip


def plain_loss(model, weights, projections, images, teacher_maps):
    """Every block's tokens scaled and summed one by one, projected by a 1x1 convolution and compared."""
    tokens = []
    hooks = [block.register_forward_hook(lambda module, args, output: tokens.append(output)) for block in model.blocks]
    model(images)
    for hook in hooks:
        hook.remove()
    loss = 0
    for w, linear, target in zip(weights, projections, teacher_maps, strict=True):
        shares = w.exp() / w.exp().sum()
        mixed = sum(share * x[:, 1:] for share, x in zip(shares, tokens, strict=True))
        x = F.conv2d(mixed.transpose(1, 2).unflatten(2, (4, 4)), linear.weight[:, :, None, None], linear.bias)
        x = F.interpolate(x, target.shape[-2:], mode="bilinear", align_corners=False)
        loss = loss + (x - target).square().mean()
    return loss


def test_loss_and_gradients_are_those_of_the_weighted_means():
    torch.manual_seed(0)
    student = GuidedStudent(small_student(), range(4), CHANNELS, 32, learned=True).double()
    for logits in student.guidance.taps.logits:
        assert torch.equal(logits, torch.zeros(4))  # it begins as the mean of all blocks
        torch.nn.init.normal_(logits)
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    teacher_maps = [
        torch.randn(3, width, side, side, dtype=torch.float64) for width, side in zip(CHANNELS, (8, 8, 4), strict=True)
    ]
    model, guidance = copy.deepcopy(student.model), copy.deepcopy(student.guidance)
    expected = plain_loss(model, guidance.taps.logits, guidance.projections, images, teacher_maps)
    expected.backward()

    loss = student(images, TeacherTargets(TeacherOutputs(teacher_maps, None)))[1].weighted
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    for ours, plain in zip(student.guidance.parameters(), guidance.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-9, atol=1e-12)


def test_weight_decay_leaves_the_weights_alone():
    student = GuidedStudent(small_student(), range(4), CHANNELS, 32, learned=True)
    undecayed = param_groups(student.named_parameters(), 0.05)[1]["params"]
    assert {id(p) for p in student.guidance.taps.parameters()} <= {id(p) for p in undecayed}


def test_they_end_with_guidance():
    student = GuidedStudent(small_student(), range(4), CHANNELS, 32, learned=True)
    student.end_guidance()
    assert not any(p.requires_grad for p in student.guidance.taps.parameters())
    assert student(torch.randn(2, 3, 32, 32))[1] is None


class Stages:
    """Stands for a teacher of three stages."""

    def channels(self, size):
        return CHANNELS


@pytest.mark.parametrize(("layers", "expected"), [("", (0, 1, 2)), ("0,2", (0, 2))])
def test_they_mix_the_blocks_of_the_configuration_or_all(tmp_path, layers, expected):
    config = tiny_config(tmp_path, **{"guidance.taps": "learned", "guidance.student_layers": layers})
    student = build_student(config, 10, Stages())
    assert student._taps.layers == expected
    assert [len(logits) for logits in student.guidance.taps.logits] == [len(expected)] * 3
    assert len(student.guidance.projections) == 3


def test_blocks_of_several_shapes_are_refused_before_the_teacher_trains(tmp_path):
    config = tiny_config(
        tmp_path,
        **{
            "guidance.taps": "learned", "guidance.student_layers": "", "model.name": "pvt_v2_b0",
            "model.embed_dim": "none", "model.depth": "none", "model.num_heads": "none", "model.patch_size": "none",
            "augment.image_size": 32,
        },
    )  # fmt: skip
    with pytest.raises(
        ValueError, match=r"^guidance\.taps: .* block 2 gives 64 channels on 4x4 .* 32 channels on 8x8; use"
    ):
        check_student(config, load_images(config, "train"))


def test_a_continued_run_ends_with_the_same_bits(tmp_path):
    changes = {"guidance.taps": "learned", "log.save_every_steps": 1}
    train_run(tiny_config(tmp_path, run_dir=str(tmp_path / "whole"), **changes))
    config = tiny_config(tmp_path, **changes)
    with pytest.raises(Interrupted):
        train_run(config, interrupt=StopAt(7))
    train_run(config, resume=True)
    whole, continued = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "run"))
    assert whole.keys() == continued.keys() and all(torch.equal(whole[name], continued[name]) for name in whole)
