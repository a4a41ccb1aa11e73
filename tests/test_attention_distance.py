"""Attention distances are those of the maps that timm's modules form themselves, counted pair by pair."""

import csv
import math

import pytest
import timm
import torch
from timm.models.convit import GPSA
from timm.models.pvt_v2 import Attention as PvtAttention
from timm.models.vision_transformer import VisionTransformer

from lgfast.assembly.run import train_run
from lgfast.attention_distance import main, table
from lgfast.fusion import fuse
from lgfast.inference.attention import LayerDistance, attention_distances
from lgfast.models import create_model
from tests.runs import tiny_config

SIZE = 32
DEIT = {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}


def model_of(name, **options):
    """Make a model in eval mode, with scores large enough for attention to differ from uniform."""
    torch.manual_seed(0)
    model = create_model(name, 5, image_size=SIZE, **options).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("qkv.weight", "qk.weight", "q.weight", "kv.weight")):
                parameter.normal_(std=0.3)
            if name.endswith("gating_param"):
                parameter.fill_(-0.5)
    return model


def counted(maps, queries, keys):
    """Mean distance of each head of attention maps [B, H, N, M] over square grids, pair by pair."""

    def centre(index, side):
        return (index // side + 0.5) * SIZE / side, (index % side + 0.5) * SIZE / side

    between = [[math.dist(centre(q, queries), centre(k, keys)) for k in range(keys**2)] for q in range(queries**2)]
    maps = maps[:, :, -(queries**2) :, -(keys**2) :].double().tolist()
    heads = []
    for head in range(len(maps[0])):
        rows = [(row, line) for image in maps for row, line in zip(image[head], between, strict=True)]
        heads.append(sum(sum(map(math.prod, zip(*pair, strict=True))) / sum(pair[0]) for pair in rows) / len(rows))
    return heads


@torch.no_grad()
def explicit_maps(model, images, kind):
    """The maps that timm's unfused modules of a class pass through their dropout, by module name."""
    modules = {name: module for name, module in model.named_modules() if type(module) is kind}
    found = {}
    for name, module in modules.items():
        module.fused_attn = False
        module.attn_drop.register_forward_pre_hook(lambda _, args, name=name: found.__setitem__(name, args[0]))
    model(images)
    for module in modules.values():
        module.fused_attn = True
    return found


def test_patches_attend_over_a_class_token():
    model, images = model_of("deit_tiny_patch16_224", **DEIT), torch.randn(3, 3, SIZE, SIZE)
    maps = explicit_maps(model, images, type(model.blocks[0].attn))
    fuse(model)
    found = attention_distances(model, [images[:2], images[2:]])
    assert list(found) == ["blocks.0.attn", "blocks.1.attn"]
    for name, one in found.items():
        assert one.heads == pytest.approx(counted(maps[name], 4, 4), rel=1e-4)
        assert max(abs(head - one.uniform) for head in one.heads) > 0.2


def test_keys_on_a_smaller_grid():
    model, images = model_of("pvt_v2_b0"), torch.randn(2, 3, SIZE, SIZE)
    maps = explicit_maps(model, images, PvtAttention)
    found = attention_distances(model, [images])
    assert set(found) == set(maps)
    sides = [(8, 1), (4, 1), (2, 1), (1, 1)]  # queries, keys of the four stages
    for (name, one), (queries, keys) in zip(found.items(), [s for s in sides for _ in range(2)], strict=True):
        assert one.heads == pytest.approx(counted(maps[name], queries, keys), rel=1e-4)


@torch.no_grad()
def test_convit_mixes_content_and_position():
    model, images = model_of("convit_tiny", patch_size=8), torch.randn(2, 3, SIZE, SIZE)
    plain = timm.create_model("convit_tiny", num_classes=5, img_size=SIZE, patch_size=8).eval()
    plain.load_state_dict(model.state_dict())
    maps = {}
    for name, module in plain.named_modules():
        if type(module) is GPSA:
            module.register_forward_pre_hook(
                lambda own, args, name=name: maps.__setitem__(name, own.get_attention(*args))
            )
    plain(images), plain(images)  # the first call makes the table of relative positions
    found = attention_distances(model, [images])
    assert len(maps) == 10 and len(found) == 12
    for name, attention in maps.items():
        assert found[name].heads == pytest.approx(counted(attention, 4, 4), rel=1e-4)


def test_equal_scores_look_everywhere_alike():
    model = model_of("cvt_13")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".attn.q." in name:
                parameter.zero_()
    found = attention_distances(model, [torch.randn(2, 3, SIZE, SIZE)])
    assert len(found) == 13
    assert found["stages.0.blocks.0.attn"].uniform == pytest.approx(counted(torch.ones(1, 1, 64, 16), 8, 4)[0])
    for one in found.values():
        assert one.heads == pytest.approx([one.uniform] * len(one.heads), rel=1e-5)


def test_the_model_works_as_before():
    model, images = model_of("deit_tiny_patch16_224", **DEIT), torch.randn(2, 3, SIZE, SIZE)
    expected = model(images)
    attention_distances(model, [images])
    torch.testing.assert_close(model(images), expected, rtol=0, atol=0)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_what_has_no_attention_to_measure_is_refused():
    with pytest.raises(ValueError, match="CifarResNet made no such call in 1 batches"):
        attention_distances(create_model("cifar_resnet8", 5), [torch.randn(1, 3, SIZE, SIZE)])
    with pytest.raises(ValueError, match="made no such call in 0 batches"):
        attention_distances(model_of("deit_tiny_patch16_224", **DEIT), [])
    with pytest.raises(ValueError, match=r"expected square images, got \(1, 3, 16, 32\)"):
        attention_distances(model_of("deit_tiny_patch16_224", **DEIT), [torch.randn(1, 3, 16, SIZE)])
    crowded = VisionTransformer(SIZE, 8, embed_dim=64, depth=1, num_heads=2, reg_tokens=6)
    with pytest.raises(ValueError, match=r"blocks.0.attn: 23 tokens are not a square grid"):
        attention_distances(crowded, [torch.randn(1, 3, SIZE, SIZE)])


def test_runs_side_by_side(tmp_path, capsys):
    config = tiny_config(tmp_path, **{"max_steps": 1, "guidance.weight": 0})
    train_run(config)
    capsys.readouterr()
    assert (
        main([config.run_dir, f"{config.run_dir}/last.safetensors", "--images", "1", "--csv", f"{tmp_path}/d/a.csv"])
        == 0
    )
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["layer", "uniform", config.run_dir, f"{config.run_dir}/last.safetensors"]
    with open(tmp_path / "d" / "a.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["layer"] for row in rows} == {line.split()[0] for line in lines}
    assert all(0 < float(row["distance_pixels"]) < SIZE for row in rows)


def test_a_layer_that_one_of_the_models_lacks():
    found = {"a": {"x": LayerDistance([1.0, 3.0], 4.0)}, "b": {"y": LayerDistance([2.0], 4.0)}}
    assert table(found).rows == [
        ["x", "4.0", "2.0 (1.0 to 3.0)", "-"],
        ["y", "4.0", "-", "2.0 (2.0 to 2.0)"],
    ]


def test_a_number_of_images_that_is_none():
    with pytest.raises(SystemExit):
        main(["run", "--images", "0"])
