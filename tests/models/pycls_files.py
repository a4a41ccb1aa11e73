"""Checkpoints as the paper's code writes them: the names of its networks' weights, and files that hold them."""

import torch

from lgfast.models.pycls_weights import convert_pycls


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
