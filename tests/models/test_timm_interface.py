"""lgfast's own students behave as timm users expect, and ConViT's swapped attention is timm's function."""

import copy

import pytest
import timm
import torch

from lgfast.models import create_model
from lgfast.records.checkpoint import save_weights
from tests.small_models import SHALLOW

OWN = {"t2t_vit_7": [256] * 3, "pvt_tiny": [64, 128, 320, 512], "cvt_13": [64, 192, 384]}
GRIDS = {"t2t_vit_7": [4] * 3, "pvt_tiny": [16, 8, 4, 2], "cvt_13": [16, 8, 4]}


def build(name, **kwargs):
    return timm.create_model(name, img_size=64, **{"num_classes": 5, **SHALLOW[name], **kwargs})


@pytest.mark.parametrize("name", OWN)
def test_is_listed_and_described(name):
    assert timm.is_model(name)
    model = build(name)
    cfg = model.pretrained_cfg
    assert cfg["input_size"] == (3, 224, 224)
    assert dict(model.named_modules())[cfg["first_conv"]].weight is not None
    assert cfg["classifier"] == "head"


@pytest.mark.parametrize("name", OWN)
def test_classifier_can_be_reset(name):
    model, images = build(name), torch.randn(2, 3, 64, 64)
    assert model.get_classifier() is model.head
    assert model.head.out_features == model.num_classes == 5
    model.reset_classifier(3)
    assert model(images).shape == (2, 3)
    features = model.forward_features(images)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)
    model.reset_classifier(0, "")
    assert torch.equal(model.eval()(images), model.forward_features(images))
    model.reset_classifier(4, "avg")
    assert model(images).shape == (2, 4)


@pytest.mark.parametrize("name", OWN)
def test_forward_intermediates(name):
    model, images = build(name).eval(), torch.randn(2, 3, 64, 64)
    final, maps = model.forward_intermediates(images)
    assert [tuple(m.shape) for m in maps] == [(2, c, s, s) for c, s in zip(OWN[name], GRIDS[name], strict=True)]
    torch.testing.assert_close(final, model.forward_features(images))
    early = model.forward_intermediates(images, indices=[0, 1], stop_early=True, intermediates_only=True)
    assert len(early) == 2
    assert torch.equal(early[1], maps[1])


@pytest.mark.parametrize("name", OWN)
def test_features_only(name):
    model = build(name, features_only=True)
    maps = model(torch.randn(1, 3, 64, 64))
    assert model.feature_info.channels() == [m.shape[1] for m in maps]
    assert model.feature_info.reduction() == [64 // m.shape[2] for m in maps]


@pytest.mark.parametrize("name", OWN)
def test_checkpointed_blocks_give_the_same_gradients(name):
    model, images, grads = build(name), torch.randn(2, 3, 64, 64), []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(images).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", OWN)
def test_no_weight_decay_names_exist(name):
    model = build(name)
    names = {key for key, _ in model.named_parameters()}
    assert "cls_token" in model.no_weight_decay()
    assert {key for key in names if key.endswith(("cls_token", "pos_embed"))} <= model.no_weight_decay()


@pytest.mark.parametrize("name", OWN)
def test_saves_and_reloads_through_timm(name, tmp_path):
    model, images = timm.create_model(name, img_size=64, num_classes=5).eval(), torch.randn(1, 3, 64, 64)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(other(images), model(images))


def test_t2t_can_change_its_input_size():
    model = build("t2t_vit_7")
    model.set_input_size(img_size=(96, 96))
    want = timm.create_model("t2t_vit_7", img_size=96).pos_embed
    assert torch.equal(model.pos_embed, want)
    assert not model.pos_embed.requires_grad
    assert model(torch.randn(1, 3, 96, 96)).shape == (1, 5)


@pytest.mark.parametrize(
    ("name", "kwargs", "match"),
    [
        ("t2t_vit_7", {"patch_size": 8}, "patch_size is 16 by construction"),
        ("pvt_tiny", {"global_pool": "max"}, "global_pool must be 'token', 'avg' or '', got 'max'"),
        ("cvt_13", {"global_pool": "max"}, "global_pool must be"),
    ],
)
def test_bad_arguments(name, kwargs, match):
    with pytest.raises(ValueError, match=match):
        build(name, **kwargs)


def test_one_image_trains_cvt():
    model = build("cvt_13").train()
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 5)


def test_fast_attention_of_convit_is_timms_function():
    shape = SHALLOW["convit_tiny"]
    model = create_model("convit_tiny", num_classes=5, image_size=64, **shape).double()
    plain = timm.create_model("convit_tiny", num_classes=5, img_size=64, drop_path_rate=0.1, **shape).double()
    assert model.state_dict().keys() == plain.state_dict().keys()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
    plain.load_state_dict(model.state_dict())
    images, results = torch.randn(2, 3, 64, 64, dtype=torch.float64), []
    for net in (model, plain):
        net.eval()
        logits = net(images)
        logits.square().sum().backward()
        results.append([logits, *(p.grad for p in net.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_fast_attention_of_convit_keeps_attention_dropout():
    model = create_model("convit_tiny", num_classes=5, image_size=64, attn_drop_rate=0.1)
    assert {type(b.attn).__module__ for b in model.blocks} == {"timm.models.convit"}


def test_position_attention_survives_deepcopy_and_dtype_changes():
    model = create_model("convit_tiny", num_classes=5, image_size=64).eval()
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(copy.deepcopy(model).double()(images.double()).float(), model(images))


@pytest.mark.parametrize(
    "name",
    [
        "deit_tiny_patch16_224",
        "t2t_vit_7",
        "t2t_vit_14",
        "pit_ti_224",
        "pvt_tiny",
        "pvt_v2_b0",
        "convit_tiny",
        "cvt_13",
    ],
)
def test_timm_loads_the_weights_of_a_run(name, tmp_path):
    model, images = create_model(name, 5, image_size=64, **SHALLOW[name]).eval(), torch.randn(1, 3, 64, 64)
    save_weights(tmp_path / "best.safetensors", model.state_dict(), {"class_names": list("abcde")})
    shape = SHALLOW[name] if name == "pvt_v2_b0" else {"img_size": 64, **SHALLOW[name]}  # timm's takes every size
    loaded = timm.create_model(name, num_classes=5, checkpoint_path=str(tmp_path / "best.safetensors"), **shape).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), model(images), rtol=1e-5, atol=1e-5)
