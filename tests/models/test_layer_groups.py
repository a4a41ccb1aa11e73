"""Frozen parts and layer-wise learning rates, against BEiT's formula and what autograd does."""

import pytest
import torch

from lgfast.guidance import GuidedStudent
from lgfast.models import create_model
from lgfast.models.layer_groups import frozen_names, layer_scales

STUDENTS = ["deit_tiny_patch16_224", "convit_tiny", "t2t_vit_7", "pit_ti_224", "pvt_tiny", "pvt_v2_b0", "cvt_13"]


def test_each_block_learns_slower_than_the_next():
    """As BEiT defines it: block i of 12, counted from 0, at decay ** (12 - i), the embeddings at decay ** 13."""
    scales = layer_scales(create_model("deit_tiny_patch16_224", num_classes=3, image_size=32, patch_size=8), 0.7)
    for name, scale in scales.items():
        if name.startswith("blocks."):
            assert scale == pytest.approx(0.7 ** (12 - int(name.split(".")[1])))
        else:
            assert scale == pytest.approx({"head": 1, "norm": 0.7}.get(name.split(".")[0], 0.7**13)), name


@pytest.mark.parametrize("name", STUDENTS)
def test_every_student_has_layers(name):
    scales = layer_scales(create_model(name, num_classes=3, image_size=64), 0.7)
    assert scales["head.weight"] == 1 and len(set(scales.values())) > 3
    assert all(name.startswith("head") or scale < 1 for name, scale in scales.items())
    blocks = [scale for name, scale in scales.items() if name.endswith("mlp.fc1.weight")]
    assert blocks == sorted(blocks)


@pytest.mark.parametrize("name", STUDENTS)
def test_frozen_parts_get_no_gradient_and_the_rest_does(name):
    model = create_model(name, num_classes=3, image_size=64)
    torch.nn.init.normal_(model.head.weight)
    student = GuidedStudent(model)
    student.freeze("blocks:2")
    student.train()(torch.randn(4, 3, 64, 64))[0].sum().backward()
    frozen = set(frozen_names(model, "blocks:2"))
    assert {name for name, p in model.named_parameters() if p.grad is None} == frozen
    later = [name for name, _ in model.named_parameters() if name not in frozen]
    assert any("patch_embed" in name for name in frozen) and later[-1].startswith("head")


def test_nothing_before_the_first_trained_block_needs_a_backward_pass():
    model = create_model("deit_tiny_patch16_224", num_classes=3, image_size=32, patch_size=8, depth=4)
    student = GuidedStudent(model)
    student.freeze("blocks:3")
    needs = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, output: needs.append(output.requires_grad))
    student(torch.randn(2, 3, 32, 32))
    assert needs == [False, False, False, True]


def test_frozen_blocks_behave_as_in_evaluation():
    model = create_model("cvt_13", num_classes=3, image_size=64, drop_path_rate=0.9)
    student = GuidedStudent(model)
    student.freeze("backbone")
    images = torch.randn(2, 3, 64, 64)
    expected = student.eval()(images)[0]
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    trained = student.train()(images)[0]
    torch.testing.assert_close(trained, expected, rtol=0, atol=0)  # neither dropped paths nor statistics of the batch
    torch.testing.assert_close(dict(model.named_buffers()), before, rtol=0, atol=0)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]


def test_more_blocks_than_there_are_is_refused():
    model = create_model("deit_tiny_patch16_224", num_classes=3, image_size=32, patch_size=8, depth=4)
    with pytest.raises(ValueError, match=r"optim.freeze: .* has 4 blocks, got blocks:5"):
        GuidedStudent(model).freeze("blocks:5")
