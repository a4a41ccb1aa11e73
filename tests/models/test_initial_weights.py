"""Weights of another model as a start: against timm's own loading of pretrained weights."""

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed

from lgfast.models import create_model
from lgfast.models.initial_weights import start_from
from tests.small_models import SHALLOW

SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 3, "drop_path_rate": 0.0}


def vit(num_classes=7, image_size=32, patch_size=8, seed=0, **shape):
    torch.manual_seed(seed)
    model = create_model(
        "deit_tiny_patch16_224", num_classes=num_classes, image_size=image_size, patch_size=patch_size, **SMALL | shape
    )
    for parameter in model.parameters():  # so that no two models agree by chance
        torch.nn.init.normal_(parameter)
    return model


def test_a_model_of_the_same_shape_becomes_the_same():
    source, model = vit(), vit(seed=1)
    start = start_from(model, source.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.eval()(images), source.eval()(images))
    assert (start.resized, start.new) == ((), ()) and str(start) == "every tensor as it is"


def test_a_head_of_other_classes_begins_anew_and_the_rest_is_taken():
    source, model = vit(), vit(num_classes=5, seed=1)
    head = model.head.weight.clone()
    start = start_from(model, source.state_dict())
    assert start.new == ("head.bias", "head.weight") and torch.equal(model.head.weight, head)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.eval().forward_features(images), source.eval().forward_features(images))


def test_a_head_of_other_names_begins_anew():
    source, model = vit(), vit(seed=1)
    head = model.head.weight.clone()
    assert start_from(model, source.state_dict(), keep_head=False).new and torch.equal(model.head.weight, head)


def test_position_embeddings_are_resized_as_timm_does():
    source, model = vit(), vit(image_size=48, seed=1)
    start = start_from(model, source.state_dict())
    assert start.resized == ("pos_embed",)
    expected = resample_abs_pos_embed(source.pos_embed.detach(), [6, 6], [4, 4], num_prefix_tokens=1)
    assert torch.equal(model.pos_embed, expected)
    assert torch.equal(model.pos_embed[:, 0], source.pos_embed[:, 0])  # the class token's stays


@pytest.mark.parametrize("name", ["convit_tiny", "t2t_vit_7", "pit_ti_224", "pvt_tiny", "pvt_v2_b0", "cvt_13"])
def test_every_student_starts_from_itself_at_another_size(name):
    source = create_model(name, num_classes=3, image_size=64, **SHALLOW[name])
    model = create_model(name, num_classes=5, image_size=96, **SHALLOW[name])
    start = start_from(model, source.state_dict())
    own = model.state_dict()
    for tensor_name, tensor in source.state_dict().items():
        if tensor_name not in start.resized and not tensor_name.startswith("head"):
            assert torch.equal(own[tensor_name], tensor), tensor_name
    for resized in start.resized:  # a smooth resize keeps the mean of smooth values
        assert "pos_embed" in resized and own[resized].shape != source.state_dict()[resized].shape
    model.eval()(torch.randn(1, 3, 96, 96))


def test_constant_position_embeddings_stay_constant_on_every_grid():
    source = create_model("pit_ti_224", num_classes=3, image_size=64)
    model = create_model("pit_ti_224", num_classes=3, image_size=96)
    torch.nn.init.constant_(source.pos_embed, 0.25)
    start_from(model, source.state_dict())
    torch.testing.assert_close(model.pos_embed.detach(), torch.full_like(model.pos_embed, 0.25))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("norm.weight"), "no tensor 'norm.weight', which the model needs"),
        (lambda weights: weights.update(extra=torch.zeros(1)), "tensor 'extra' is not part of the model"),
        (lambda weights: weights.update({"norm.bias": torch.zeros(3)}), r"norm.bias has shape \[3\], the model needs"),
        (
            lambda weights: weights.update(pos_embed=torch.zeros(1, 17, 5)),
            r"pos_embed has shape .* the model needs \[1, 37, 48\]",
        ),
        (lambda weights: weights["norm.bias"][:1].mul_(torch.nan), "norm.bias holds numbers that are not finite"),
        (lambda weights: weights.update({"norm.bias": torch.ones(48).int()}), "norm.bias has dtype torch.int32, the "),
        (lambda weights: weights.update({"norm.bias": torch.ones(48) + 0j}), "norm.bias is a tensor torch.strided, "),
        (lambda weights: weights.update({"norm.bias": torch.ones(48).to_sparse()}), "norm.bias is a tensor torch.sp"),
        (lambda weights: weights.update({"norm.bias": torch.ones(48, device="meta")}), "norm.bias is a tensor without"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_changes(change, message):
    weights, model = dict(vit().state_dict()), vit(image_size=48, seed=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    change(weights)
    with pytest.raises(ValueError, match=message):
        start_from(model, weights)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("channels", [1, 5])
def test_a_first_convolution_is_fitted_to_other_channels_as_timm_does(channels):
    torch.manual_seed(0)
    weights = timm.create_model("test_vit").state_dict()
    loaded = {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": dict(weights)}}
    expected = timm.create_model("test_vit", in_chans=channels, **loaded).state_dict()
    model = timm.create_model("test_vit", in_chans=channels)
    start = start_from(model, weights)
    assert start.resized == ("patch_embed.proj.weight",) and not start.new
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    five, two = timm.create_model("test_vit", in_chans=5), timm.create_model("test_vit", in_chans=2)
    with pytest.raises(ValueError, match=r"patch_embed.proj.weight has shape .*5, 16, 16\], the model needs"):
        start_from(two, five.state_dict())
