"""Checkpoints of the paper's code load by name into the models, or say why not."""

import re

import pytest
import torch

from lgfast.models import create_model
from lgfast.models.pycls_weights import convert_pycls, load_pycls, model_from_pycls, read_pycls


def attention_layers(prefix, depth):
    """Names of the paper's plain transformer layers."""
    for i in range(depth):
        for name in ("norm1", "attn.qkv_transform", "attn.projection", "norm2", "mlp.fc1", "mlp.fc2"):
            yield f"{prefix}.{i}.{name}"


def with_bias(modules, without=()):
    """`.weight` and `.bias` of each module, no bias where its last name is in `without`."""
    for module in modules:
        yield f"{module}.weight"
        if module.rpartition(".")[2] not in without:
            yield f"{module}.bias"


def bn(module):
    return [f"{module}.{x}" for x in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]


def deit_names():
    yield from ("cls_token", "pos_embed")
    yield from with_bias(["patch_embed.projection", *attention_layers("layers", 12), "norm", "head"])


def t2t_names(depth):
    yield from ("cls_token", "pos_embed", "t2t_module.attention.0.attn.w", "t2t_module.attention.1.attn.w")
    for i in (0, 1):
        parts = ("norm1", "attn.qkv_transform", "attn.projection", "norm2", "mlp.fc1", "mlp.fc2")
        yield from with_bias(f"t2t_module.attention.{i}.{part}" for part in parts)
    yield from with_bias(attention_layers("layers", depth), without=("qkv_transform",))
    yield from with_bias(["t2t_module.projection", "norm", "head"])


def pit_names():
    yield from ("cls_token", "pos_embed")
    for s, depth in enumerate((2, 6, 4)):
        yield from with_bias(attention_layers(f"transformers.{s}.blocks", depth))
    yield from with_bias(["patch_embed.conv", "pools.0.conv", "pools.0.fc", "pools.1.conv", "pools.1.fc"])
    yield from with_bias(["norm", "head"])


def pvt_names(version):
    yield from ["cls_token", "norm.weight", "norm.bias"] if version == 1 else []
    for s in (1, 2, 3, 4):
        yield from [f"pos_embed{s}"] if version == 1 else [f"norm{s}.weight", f"norm{s}.bias"]
        yield from with_bias([f"patch_embed{s}.proj", f"patch_embed{s}.norm"])
        parts = ["norm1", "attn.q", "attn.kv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"]
        parts += ["attn.sr", "attn.norm"] if s < 4 else []
        parts += ["mlp.dwconv.dwconv"] if version == 2 else []
        yield from with_bias(f"block{s}.{i}.{part}" for i in (0, 1) for part in parts)
    yield from with_bias(["head"])


def convit_names():
    yield from ("cls_token", "pos_embed")
    for i in range(12):
        gated = i < 10
        parts = ["qk", "v", "proj", "pos_proj"] if gated else ["qkv", "proj"]
        yield from with_bias((f"blocks.{i}.attn.{part}" for part in parts), without=("qk", "v", "qkv"))
        yield from [f"blocks.{i}.attn.gating_param"] if gated else []
        yield from with_bias(f"blocks.{i}.{part}" for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"))
    yield from with_bias(["patch_embed.proj", "norm", "head"])


def cvt_names():
    yield "stage2.cls_token"
    for s, depth in enumerate((1, 2, 10)):
        yield from with_bias([f"stage{s}.patch_embed.proj", f"stage{s}.patch_embed.norm"])
        for i in range(depth):
            block = f"stage{s}.blocks.{i}"
            for x in "qkv":
                yield f"{block}.attn.conv_proj_{x}.conv.weight"
                yield from bn(f"{block}.attn.conv_proj_{x}.bn")
                yield from with_bias([f"{block}.attn.proj_{x}"])
            yield from with_bias(f"{block}.{part}" for part in ("norm1", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"))
    yield from with_bias(["norm", "head"])


def resnet_names(num_stages, num_blocks):
    yield from ["stem.conv.weight", *bn("stem.bn"), "head.fc.weight", "head.fc.bias"]
    for s in range(1, num_stages + 1):
        for b in range(1, num_blocks + 1):
            block = f"s{s}.b{b}"
            if s > 1 and b == 1:
                yield from [f"{block}.proj.weight", *bn(f"{block}.bn")]
            yield from [f"{block}.f.a.weight", *bn(f"{block}.f.a_bn"), f"{block}.f.b.weight", *bn(f"{block}.f.b_bn")]


NAMES = {
    "deit_tiny_patch16_224": list(deit_names()),
    "t2t_vit_7": list(t2t_names(7)),
    "t2t_vit_14": list(t2t_names(14)),
    "pit_ti_224": list(pit_names()),
    "pvt_tiny": list(pvt_names(1)),
    "pvt_v2_b0": list(pvt_names(2)),
    "convit_tiny": list(convit_names()),
    "cvt_13": list(cvt_names()),
    "cifar_resnet56": list(resnet_names(3, 9)),
    "cifar_resnet20": list(resnet_names(3, 3)),
    "resnet18": list(resnet_names(4, 2)),
}


def pyth_state(model, names):
    """A state dict with the paper's names whose values say where they belong, for a model of ours."""
    ours, renamed = model.state_dict(), convert_pycls({name: name for name in names}, architecture_of(model))
    assert sorted(renamed) == sorted(ours)
    return {old: torch.randn(ours[new].shape).to(ours[new].dtype) for new, old in renamed.items()}


def architecture_of(model):
    return model.pretrained_cfg["architecture"]


def save(path, state, **entries):
    content = {"epoch": 3, "test_err": 21.5, "model_state": state, "optimizer_state": {"state": {}}, "cfg": "MODEL: {}"}
    torch.save({**content, **entries}, path)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_the_papers_code_finds_its_place(name, tmp_path):
    model = create_model(name, num_classes=4, image_size=32)
    state = pyth_state(model, NAMES[name])
    save(tmp_path / "model.pyth", state)
    checkpoint = load_pycls(model, tmp_path / "model.pyth")
    assert (checkpoint.num_classes, checkpoint.test_err, checkpoint.config) == (4, 21.5, "MODEL: {}")
    loaded = model.state_dict()
    for old, new in zip(state, convert_pycls(dict(zip(state, state, strict=True)), name), strict=True):
        assert torch.equal(loaded[new], state[old]), (old, new)


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_builds_its_own_model(name, tmp_path):
    image_size = 64 if name == "deit_tiny_patch16_224" else 224
    config = "MODEL: {IMG_SIZE: 64}" if image_size == 64 else "MODEL: {TYPE: x}"
    original = create_model(name, num_classes=4, image_size=image_size)
    save(tmp_path / "model.pyth", pyth_state(original, NAMES[name]), cfg=config)
    model, checkpoint = model_from_pycls(tmp_path / "model.pyth")
    assert architecture_of(model) == name
    assert not model.training
    assert model.num_classes == checkpoint.num_classes == 4


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    save(tmp_path / "x.pyth", {"head.weight": torch.zeros(4, 8)})
    with pytest.raises(ValueError, match="of no model that lgfast knows"):
        model_from_pycls(tmp_path / "x.pyth")
    save(tmp_path / "x.pyth", {})
    with pytest.raises(ValueError, match="of no model"):
        model_from_pycls(tmp_path / "x.pyth")


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("deit_tiny_patch16_224", "layers.11.attn.qkv_transform.bias", "blocks.11.attn.qkv.bias"),
        ("t2t_vit_7", "t2t_module.attention.1.attn.qkv_transform.weight", "patch_embed.attention2.kqv.weight"),
        ("t2t_vit_7", "layers.6.attn.projection.bias", "blocks.6.attn.proj.bias"),
        ("pit_ti_224", "pools.1.fc.weight", "transformers.2.pool.fc.weight"),
        ("pvt_tiny", "pos_embed4", "stages.3.pos_embed"),
        ("pvt_v2_b0", "patch_embed3.norm.bias", "stages.2.downsample.norm.bias"),
        ("cvt_13", "stage1.blocks.0.attn.conv_proj_k.bn.running_var", "stages.1.blocks.0.attn.conv_k.bn.running_var"),
        ("cvt_13", "stage1.blocks.0.attn.proj.weight", "stages.1.blocks.0.attn.proj.weight"),
        ("cifar_resnet56", "s2.b1.bn.weight", "layer2.0.downsample.1.weight"),
        ("cifar_resnet56", "s3.b9.f.b_bn.bias", "layer3.8.bn2.bias"),
    ],
)
def test_names_map_one_by_one(name, old, new):
    assert list(convert_pycls({old: None}, name)) == [new]


@pytest.fixture
def resnet():
    return create_model("cifar_resnet8", num_classes=4, image_size=32)


def test_misfits_are_named_and_change_nothing(resnet, tmp_path):
    before = {key: value.clone() for key, value in resnet.state_dict().items()}
    state = pyth_state(resnet, list(resnet_names(3, 1)))
    state["head.fc.weight"] = torch.zeros(9, 64)
    del state["stem.conv.weight"]
    state["head.fc.scale"] = torch.zeros(1)
    save(tmp_path / "x.pyth", state)
    expected = "fc.weight is [9, 64], expected [4, 64]; conv1.weight is missing; fc.scale is unknown"
    with pytest.raises(ValueError, match=f"does not fit cifar_resnet8: {re.escape(expected)}"):
        load_pycls(resnet, tmp_path / "x.pyth")
    assert all(torch.equal(value, before[key]) for key, value in resnet.state_dict().items())


def test_another_depth_is_refused(resnet, tmp_path):
    deeper = create_model("cifar_resnet20", num_classes=4, image_size=32)
    save(tmp_path / "x.pyth", pyth_state(deeper, list(resnet_names(3, 3))))
    with pytest.raises(ValueError, match=r"layer1.1.conv1.weight is unknown; .* and \d+ more"):
        load_pycls(resnet, tmp_path / "x.pyth")


def test_files_that_are_no_checkpoints(tmp_path):
    path = tmp_path / "x.pyth"
    with pytest.raises(FileNotFoundError):
        read_pycls(path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="not a readable PyTorch checkpoint"):
        read_pycls(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(ValueError, match="a dict with the key 'model_state'"):
        read_pycls(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="not a readable PyTorch checkpoint"):
        read_pycls(path)


class Payload:
    def __reduce__(self):
        return (print, ("code from the checkpoint ran",))


def test_code_in_a_checkpoint_does_not_run(tmp_path, capsys):
    save(tmp_path / "x.pyth", {}, extra=Payload())
    with pytest.raises(ValueError, match="not a readable PyTorch checkpoint"):
        read_pycls(tmp_path / "x.pyth")
    assert "ran" not in capsys.readouterr().out


def test_models_the_paper_does_not_have():
    with pytest.raises(ValueError, match=r"the paper's code has no vit_small_patch16_224; its models are deit_tiny"):
        convert_pycls({}, "vit_small_patch16_224")
