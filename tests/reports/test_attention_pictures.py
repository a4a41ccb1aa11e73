"""Rollouts and maps are those of the attention that timm's modules form themselves; pictures are warm where it is."""

import numpy as np
import pytest
import torch

from lgfast.inference.attention import attention_maps, rollout
from lgfast.models import create_model
from lgfast.reports.attention_pictures import MAPS, find_looks, one_of_each, overlay, write_looks

SIZE, DEIT = 32, {"patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 2}


@pytest.fixture(scope="module")
def deit():
    torch.manual_seed(0)
    model = create_model("deit_tiny_patch16_224", 5, image_size=SIZE, **DEIT).eval()
    for block in model.blocks:
        torch.nn.init.normal_(block.attn.qkv.weight, std=0.3)
    return model


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def own_maps(model, images):
    """What timm's unfused modules pass through their dropout."""
    maps, handles = [], []
    for block in model.blocks:
        block.attn.fused_attn = False
        handles.append(block.attn.attn_drop.register_forward_pre_hook(lambda _, args: maps.append(args[0])))
    with torch.no_grad():
        model(images)
    for block, handle in zip(model.blocks, handles, strict=True):
        block.attn.fused_attn = True
        handle.remove()
    return maps


def test_maps_are_those_of_timm(deit, images):
    found, expected = attention_maps(deit, images), own_maps(deit, images)
    assert list(found) == [f"blocks.{number}.attn" for number in range(3)]
    for ours, theirs in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_rollout_multiplies_attention_with_its_residual_connections():
    random = np.random.default_rng(0)
    maps = [random.dirichlet(np.ones(4), size=(2, 3, 4)) for _ in range(3)]
    expected = []
    for image in range(2):
        total = np.eye(4)
        for layer in maps:
            total = (0.5 * layer[image].mean(0) + 0.5 * np.eye(4)) @ total
        expected.append(total)
    found = rollout([torch.tensor(layer, dtype=torch.float32) for layer in maps])
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)
    assert torch.allclose(found.sum(-1), torch.ones(2, 4))


def test_looks_are_those_of_the_class_token(deit, images):
    looks, maps = find_looks(deit, images), own_maps(deit, images)
    last = maps[-1][:, :, 0, 1:]
    expected = (last / last.sum(-1, keepdim=True)).unflatten(-1, (4, 4))
    np.testing.assert_allclose(looks.heads, expected.numpy(), rtol=1e-4)
    whole = rollout(maps)[:, 0, 1:]
    np.testing.assert_allclose(looks.rollout.reshape(3, 16), whole / whole.sum(-1, keepdim=True), rtol=1e-4)


def test_layers_of_several_sizes_have_no_rollout(images):
    looks = find_looks(create_model("pvt_v2_b0", 5, image_size=SIZE), images)
    assert looks.rollout is None and looks.heads.shape[0] == 3
    assert np.allclose(looks.heads.sum((2, 3)), 1)


def test_a_network_without_attention_is_refused(images):
    with pytest.raises(ValueError, match=r"CifarResNet|ResNet.* made no call of scaled_dot_product_attention"):
        find_looks(create_model("cifar_resnet8", 5, image_size=SIZE), images)


def test_pictures_are_warmest_where_the_weight_is_highest():
    weights = np.zeros((4, 4), np.float32)
    weights[1, 2] = 1
    shown = overlay(np.full((64, 64, 3), 100, np.uint8), weights).astype(int)
    warmth = shown[..., 0] - shown[..., 2]
    row, column = np.unravel_index(warmth.argmax(), warmth.shape)
    assert 16 <= row < 32 and 32 <= column < 48 and warmth[60, 4] == 0
    assert (overlay(np.full((8, 8, 3), 100, np.uint8), np.ones((2, 2))) == 90).all()  # alike everywhere: none is warm


def test_files_hold_the_maps(deit, images, tmp_path):
    looks = find_looks(deit, images)
    path = write_looks(looks, [np.zeros((9, 12, 3), np.uint8)] * 3, ["a", "b", "c"], tmp_path)
    with np.load(tmp_path / MAPS) as kept:
        assert (kept["rollout"] == looks.rollout).all() and (kept["heads"] == looks.heads).all()
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("labels", "count", "expected"),
    [([3, 1, 1, 0, 3], 6, [3, 1, 0]), ([0, 1, 2, 3, 4, 5], 3, [0, 2, 4]), ([2, 2], 1, [0])],
)
def test_images_of_several_classes_are_chosen(labels, count, expected):
    assert one_of_each(torch.tensor(labels), count) == expected
