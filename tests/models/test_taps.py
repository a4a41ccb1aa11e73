"""Taps give the blocks' outputs as maps, without prefix tokens, for any layout."""

import copy

import pytest
import timm
import torch
from torch import nn

from lgfast.models import FeatureTaps, count_blocks, create_model, default_layers, tap_shapes
from lgfast.models.taps import split_tokens
from tests.small_models import SHALLOW


@pytest.fixture
def tiny_deit():
    return create_model(
        "deit_tiny_patch16_224", num_classes=10, image_size=16, patch_size=4, embed_dim=32, depth=6, num_heads=2
    ).eval()


def test_taps_equal_timms_intermediates(tiny_deit):
    images = torch.randn(2, 3, 16, 16)
    taps = FeatureTaps(tiny_deit, (0, 3, -1))
    tiny_deit(images)
    expected = tiny_deit.forward_intermediates(images, indices=[0, 3, 5], norm=False, intermediates_only=True)
    taps.take()
    tiny_deit(images)
    for (tokens, (h, w)), want in zip(taps.take(), expected, strict=True):
        assert (h, w) == want.shape[2:]
        torch.testing.assert_close(tokens, want.flatten(2).transpose(1, 2), rtol=0, atol=0)


def test_taps_copy_nothing(tiny_deit):
    taps = FeatureTaps(tiny_deit, (2,))
    outputs = []
    tiny_deit.blocks[2].register_forward_hook(lambda module, args, output: outputs.append(output))
    tiny_deit(torch.randn(1, 3, 16, 16))
    ((tokens, _),) = taps.take()
    assert tokens.untyped_storage().data_ptr() == outputs[0].untyped_storage().data_ptr()


def test_take_empties_and_close_removes_the_hooks(tiny_deit):
    taps = FeatureTaps(tiny_deit, (0,))
    with pytest.raises(RuntimeError, match="block 0 of deit_tiny_patch16_224 has not run"):
        taps.take()
    tiny_deit(torch.randn(1, 3, 16, 16))
    taps.take()
    with pytest.raises(RuntimeError, match="since the last take"):
        taps.take()
    taps.close()
    assert not tiny_deit.blocks[0]._forward_hooks


def test_the_same_layer_may_be_tapped_twice(tiny_deit):
    first, second = FeatureTaps(tiny_deit, (1, 1)), FeatureTaps(tiny_deit, (1,))
    tiny_deit(torch.randn(1, 3, 16, 16))
    (a, _), (b, _) = first.take()
    ((c, _),) = second.take()
    assert a.data_ptr() == b.data_ptr() == c.data_ptr()


def test_taps_work_under_compile_with_equal_gradients(tiny_deit):
    def guided(model, taps, images):
        logits = model(images)
        return logits.square().sum() + sum(tokens.square().sum() for tokens, _ in taps.take())

    images, other = torch.randn(2, 3, 16, 16), copy.deepcopy(tiny_deit)
    eager = guided(tiny_deit, FeatureTaps(tiny_deit, (0, 3, 5)), images)
    eager.backward()
    taps = FeatureTaps(other, (0, 3, 5))
    compiled = torch.compile(lambda x: guided(other, taps, x), backend="aot_eager", fullgraph=True)
    for _ in range(2):
        other.zero_grad()
        loss = compiled(images)
        loss.backward()
        torch.testing.assert_close(loss, eager)
        for p, q in zip(tiny_deit.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)


def test_taps_work_around_a_compiled_model(tiny_deit):
    images, taps = torch.randn(2, 3, 16, 16), FeatureTaps(tiny_deit, (0, 3, 5))
    tiny_deit(images)
    expected = taps.take()
    compiled = torch.compile(tiny_deit, backend="eager", fullgraph=True)
    for _ in range(2):
        compiled(images)
        for (tokens, grid), (want, want_grid) in zip(taps.take(), expected, strict=True):
            assert grid == want_grid
            torch.testing.assert_close(tokens, want)


def test_a_copied_model_has_taps_of_its_own(tiny_deit):
    taps, images = FeatureTaps(tiny_deit, (0, 5)), torch.randn(1, 3, 16, 16)
    model_copy, taps_copy = copy.deepcopy((tiny_deit, taps))
    model_copy(images)
    assert len(taps_copy.take()) == 2
    with pytest.raises(RuntimeError, match="has not run"):
        taps.take()
    taps_copy.close()
    assert not model_copy.blocks[0]._forward_hooks
    assert tiny_deit.blocks[0]._forward_hooks


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "pvt_tiny", "cvt_13"])
def test_checkpointed_blocks_give_the_same_guidance_gradients(name):
    model, images, grads = (
        create_model(name, num_classes=5, image_size=32, drop_path_rate=0, **SHALLOW[name]),
        torch.randn(2, 3, 32, 32),
        [],
    )
    taps = FeatureTaps(model, default_layers(model))
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        loss = model(images).square().sum() + sum(tokens.square().mean() for tokens, _ in taps.take())
        loss.backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("name", "image_size", "num_blocks", "shapes"),
    [
        ("vit_small_patch16_224", 64, 12, [(384, (4, 4))] * 3),
        ("deit_tiny_distilled_patch16_224", 64, 12, [(192, (4, 4))] * 3),
        ("vit_little_patch16_reg4_gap_256", 64, 14, [(320, (4, 4))] * 3),
        ("swin_tiny_patch4_window7_224", 224, 12, [(96, (56, 56)), (384, (14, 14)), (768, (7, 7))]),
        ("pvt_v2_b1", 64, 8, [(64, (16, 16)), (320, (4, 4)), (512, (2, 2))]),
        ("convnext_atto", 64, 12, [(40, (16, 16)), (160, (4, 4)), (320, (2, 2))]),
        ("mvitv2_tiny", 64, 10, [(96, (16, 16)), (384, (4, 4)), (768, (2, 2))]),
        ("resnet18", 64, 8, [(64, (16, 16)), (256, (4, 4)), (512, (2, 2))]),
        ("convmixer_768_32", 28, 32, [(768, (4, 4))] * 3),
        ("gcvit_xxtiny", 224, 12, [(64, (56, 56)), (256, (14, 14)), (512, (7, 7))]),
        ("dla46_c", 64, 6, [(16, (64, 64)), (64, (8, 8)), (256, (2, 2))]),
        ("test_efficientnet", 64, 5, [(16, (32, 32)), (32, (8, 8)), (64, (2, 2))]),
    ],
)
def test_any_timm_model_has_default_taps(name, image_size, num_blocks, shapes):
    model = create_model(name, num_classes=10, image_size=image_size)
    layers = default_layers(model)
    assert count_blocks(model) == num_blocks
    assert layers == (0, num_blocks // 2, num_blocks - 1)
    got = tap_shapes(model, layers, image_size)
    assert got == shapes


def test_channels_first_and_last_maps_become_row_major_tokens():
    for name in ("convnext_atto", "swin_tiny_patch4_window7_224"):
        model = create_model(name, num_classes=10, image_size=64 if "next" in name else 224).eval()
        images = torch.randn(1, 3, *(2 * [64 if "next" in name else 224]))
        taps = FeatureTaps(model, (count_blocks(model) - 1,))
        model(images)
        ((tokens, (h, w)),) = taps.take()
        want = model.forward_intermediates(images, indices=[3], output_fmt="NCHW", intermediates_only=True)[0]
        torch.testing.assert_close(tokens.transpose(1, 2).unflatten(2, (h, w)), want)


def test_tap_shapes_leave_the_model_as_it_was():
    model = create_model("cifar_resnet8", num_classes=10, image_size=32)
    model.layer1.eval()
    state, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    tap_shapes(model, (0,), 32)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("num_tokens", "num_prefix", "expected"),
    [(197, 1, (1, 14)), (196, 1, (0, 14)), (50, 1, (1, 7)), (3136, 1, (0, 56)), (1, 1, (0, 1)), (9, 5, (5, 2))],
)
def test_tokens_split_into_prefix_and_square(num_tokens, num_prefix, expected):
    assert split_tokens(num_tokens, num_prefix, "model") == expected


def test_errors_name_the_model_and_the_fix(tiny_deit):
    with pytest.raises(ValueError, match=r"crossvit_9_240: a block must return one map"):
        tap_shapes(timm.create_model("crossvit_9_240", num_classes=2), (0,), 240)
    with pytest.raises(ValueError, match=r"nest_tiny: its blocks reorder the tokens"):
        default_layers(timm.create_model("nest_tiny", num_classes=2))
    with pytest.raises(ValueError, match=r"block index must lie in \[-6, 5\], got 6"):
        FeatureTaps(tiny_deit, (0, 6))
    with pytest.raises(ValueError, match=r"efficientformer_l1: cannot run at image size 64: .*size of tensor"):
        tap_shapes(timm.create_model("efficientformer_l1", num_classes=2), (-1,), 64)
    with pytest.raises(ValueError, match="12 tokens are no square map"):
        split_tokens(12, 1, "some_vit")
    with pytest.raises(ValueError, match="Plain: no blocks"):
        count_blocks(type("Plain", (nn.Module,), {})())
