"""The paper's networks written as plain functions of a state dict: the truth the modules are compared with.

Each function follows the equations of the network's paper (with the epsilons and scales of the
locality-guidance paper) on float64 tensors and shares no code with lgfast or timm; `state` holds the
module's weights by name. Each returns the logits and the token maps of all blocks, prefix removed.
"""

import math

import torch
import torch.nn.functional as F


def linear(x, state, key):
    x = torch.einsum("...i,oi->...o", x, state[f"{key}.weight"])
    return x + state[f"{key}.bias"] if f"{key}.bias" in state else x


def layer_norm(x, state, key, eps=1e-6):
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * state[f"{key}.weight"] + state[f"{key}.bias"]
    )


def batch_norm(x, state, key):
    mean, var, weight, bias = (
        state[f"{key}.{name}"].view(1, -1, 1, 1) for name in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def conv(x, state, key, stride=1, padding=0, groups=1):
    return F.conv2d(x, state[f"{key}.weight"], state.get(f"{key}.bias"), stride, padding, groups=groups)


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def to_map(x, h, w):
    return torch.einsum("bnc->bcn", x).reshape(x.shape[0], -1, h, w)


def to_tokens(x):
    return torch.einsum("bchw->bhwc", x).reshape(x.shape[0], -1, x.shape[1])


def with_class_token(x, token):
    return torch.cat([token.repeat(x.shape[0], 1, 1), x], 1)


def attend(q, k, v, num_heads, scale):
    q, k, v = (t.reshape(t.shape[0], t.shape[1], num_heads, -1) for t in (q, k, v))
    weights = torch.einsum("bnhd,bmhd->bhnm", q, k).mul(scale).softmax(-1)
    return torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(2)


def self_attention(x, state, key, num_heads):
    q, k, v = linear(x, state, f"{key}.qkv").chunk(3, -1)
    head_dim = x.shape[-1] // num_heads
    return linear(attend(q, k, v, num_heads, head_dim**-0.5), state, f"{key}.proj")


def mlp(x, state, key, activation=gelu):
    return linear(activation(linear(x, state, f"{key}.fc1")), state, f"{key}.fc2")


def plain_block(x, state, key, num_heads):
    x = x + self_attention(layer_norm(x, state, f"{key}.norm1"), state, f"{key}.attn", num_heads)
    return x + mlp(layer_norm(x, state, f"{key}.norm2"), state, f"{key}.mlp")


def classify(x, state, eps=1e-6):
    return linear(layer_norm(x, state, "norm", eps), state, "head")


def deit(images, state, depth=12, num_heads=3):
    x = to_tokens(conv(images, state, "patch_embed.proj", stride=16))
    x, maps = with_class_token(x, state["cls_token"]) + state["pos_embed"], []
    for i in range(depth):
        x = plain_block(x, state, f"blocks.{i}", num_heads)
        maps.append(x[:, 1:])
    return classify(x[:, 0], state), maps


def performer(x, state, key):
    w = state[f"{key}.w"]
    k, q, v = linear(layer_norm(x, state, f"{key}.norm1"), state, f"{key}.kqv").chunk(3, -1)
    phi_k, phi_q = (
        torch.exp(torch.einsum("bnd,md->bnm", t, w) - (t * t).sum(-1, keepdim=True) / 2) / math.sqrt(len(w))
        for t in (k, q)
    )
    weights = torch.einsum("bnm,blm->bnl", phi_q, phi_k)
    y = torch.einsum("bnl,bld->bnd", weights, v) / (weights.sum(-1, keepdim=True) + 1e-8)
    z = v + linear(y, state, f"{key}.proj")
    return z + mlp(layer_norm(z, state, f"{key}.norm2"), state, f"{key}.mlp")


def t2t(images, state, depth=7, num_heads=4):
    x, side, dim = images, images.shape[-1], state["cls_token"].shape[-1]
    x = F.unfold(x, 7, stride=4, padding=2).transpose(1, 2)
    for layer in ("attention1", "attention2"):
        x = performer(x, state, f"patch_embed.{layer}")
        side = math.isqrt(x.shape[1])
        x = F.unfold(to_map(x, side, side), 3, stride=2, padding=1).transpose(1, 2)
    x = with_class_token(linear(x, state, "patch_embed.proj"), state["cls_token"])
    positions = [
        [(math.cos if j % 2 else math.sin)(p / 10000 ** (2 * (j // 2) / dim)) for j in range(dim)]
        for p in range(x.shape[1])
    ]
    x, maps = x + torch.tensor(positions, dtype=x.dtype), []
    for i in range(depth):
        x = plain_block(x, state, f"blocks.{i}", num_heads)
        maps.append(x[:, 1:])
    return classify(x[:, 0], state), maps


def pit(images, state, depths=(2, 6, 4), num_heads=(2, 4, 8)):
    x = conv(images, state, "patch_embed.conv", stride=8) + state["pos_embed"]
    cls_token, maps = state["cls_token"].repeat(images.shape[0], 1, 1), []
    for s, depth in enumerate(depths):
        if s > 0:
            x = conv(x, state, f"transformers.{s}.pool.conv", stride=2, padding=1, groups=x.shape[1])
            cls_token = linear(cls_token, state, f"transformers.{s}.pool.fc")
        h, w = x.shape[2:]
        tokens = torch.cat([cls_token, to_tokens(x)], 1)
        for i in range(depth):
            tokens = plain_block(tokens, state, f"transformers.{s}.blocks.{i}", num_heads[s])
            maps.append(tokens[:, 1:])
        cls_token, x = tokens[:, :1], to_map(tokens[:, 1:], h, w)
    return classify(cls_token[:, 0], state), maps


def reduced_attention(x, state, key, num_heads, sr_ratio, h, w):
    q = linear(x, state, f"{key}.q")
    if sr_ratio > 1:
        x = layer_norm(to_tokens(conv(to_map(x, h, w), state, f"{key}.sr", stride=sr_ratio)), state, f"{key}.norm")
    k, v = linear(x, state, f"{key}.kv").chunk(2, -1)
    head_dim = x.shape[-1] // num_heads
    return linear(attend(q, k, v, num_heads, head_dim**-0.5), state, f"{key}.proj")


def pvt(images, state, num_heads=(1, 2, 5, 8), sr_ratios=(8, 4, 2, 1)):
    x, maps = images, []
    for s in range(4):
        x = conv(x, state, f"stages.{s}.patch_embed.proj", stride=4 if s == 0 else 2)
        h, w = x.shape[2:]
        x = layer_norm(to_tokens(x), state, f"stages.{s}.patch_embed.norm")
        prefix = int(s == 3)
        if prefix:
            x = with_class_token(x, state["cls_token"])
        x = x + state[f"stages.{s}.pos_embed"]
        for i in range(2):
            key = f"stages.{s}.blocks.{i}"
            y = layer_norm(x, state, f"{key}.norm1")
            x = x + reduced_attention(y, state, f"{key}.attn", num_heads[s], sr_ratios[s], h, w)
            x = x + mlp(layer_norm(x, state, f"{key}.norm2"), state, f"{key}.mlp")
            maps.append(x[:, prefix:])
        x = x if prefix else to_map(x, h, w)
    return classify(x[:, 0], state), maps


def pvt_v2(images, state, num_heads=(1, 2, 5, 8), sr_ratios=(8, 4, 2, 1)):
    x, maps = images, []
    for s in range(4):
        key, kernel = ("patch_embed", 7) if s == 0 else (f"stages.{s}.downsample", 3)
        x = conv(x, state, f"{key}.proj", stride=4 if s == 0 else 2, padding=kernel // 2)
        h, w = x.shape[2:]
        x = layer_norm(to_tokens(x), state, f"{key}.norm")
        for i in range(2):
            key = f"stages.{s}.blocks.{i}"
            y = layer_norm(x, state, f"{key}.norm1")
            x = x + reduced_attention(y, state, f"{key}.attn", num_heads[s], sr_ratios[s], h, w)
            y = to_map(linear(layer_norm(x, state, f"{key}.norm2"), state, f"{key}.mlp.fc1"), h, w)
            y = to_tokens(conv(y, state, f"{key}.mlp.dwconv", padding=1, groups=y.shape[1]))
            x = x + linear(gelu(y), state, f"{key}.mlp.fc2")
            maps.append(x)
        x = to_map(layer_norm(x, state, f"stages.{s}.norm"), h, w)
    return linear(x.mean((2, 3)), state, "head"), maps


def gated_attention(x, state, key, num_heads):
    side, head_dim = math.isqrt(x.shape[1]), x.shape[-1] // num_heads
    q, k = (t.reshape(*t.shape[:2], num_heads, -1) for t in linear(x, state, f"{key}.qk").chunk(2, -1))
    content = torch.einsum("bnhd,bmhd->bhnm", q, k).mul(head_dim**-0.5).softmax(-1)
    offsets = torch.tensor(
        [
            [
                [m % side - n % side, m // side - n // side, (m % side - n % side) ** 2 + (m // side - n // side) ** 2]
                for m in range(x.shape[1])
            ]
            for n in range(x.shape[1])
        ],
        dtype=x.dtype,
    )
    position = torch.einsum("nmh->hnm", linear(offsets, state, f"{key}.pos_proj")).softmax(-1)
    gate = torch.sigmoid(state[f"{key}.gating_param"]).view(1, -1, 1, 1)
    weights = (1 - gate) * content + gate * position
    weights = weights / weights.sum(-1, keepdim=True)
    v = linear(x, state, f"{key}.v").reshape(*x.shape[:2], num_heads, -1)
    return linear(torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(2), state, f"{key}.proj")


def convit(images, state, depth=12, num_heads=4, num_gated=10):
    x, maps = to_tokens(conv(images, state, "patch_embed.proj", stride=16)) + state["pos_embed"], []
    for i in range(depth):
        key = f"blocks.{i}"
        if i == num_gated:
            x = with_class_token(x, state["cls_token"])
        attention = gated_attention if i < num_gated else self_attention
        x = x + attention(layer_norm(x, state, f"{key}.norm1"), state, f"{key}.attn", num_heads)
        x = x + mlp(layer_norm(x, state, f"{key}.norm2"), state, f"{key}.mlp")
        maps.append(x if i < num_gated else x[:, 1:])
    return classify(x[:, 0], state), maps


def cvt(images, state, depths=(1, 2, 10), num_heads=(1, 3, 6)):
    x, maps = images, []
    for s, depth in enumerate(depths):
        stride, padding = (4, 2) if s == 0 else (2, 1)
        x = conv(x, state, f"stages.{s}.patch_embed.proj", stride, padding)
        dim, h, w = x.shape[1:]
        x = layer_norm(to_tokens(x), state, f"stages.{s}.patch_embed.norm", eps=1e-5)
        prefix = int(s == 2)
        if prefix:
            x = with_class_token(x, state["cls_token"])
        for i in range(depth):
            key = f"stages.{s}.blocks.{i}"
            y = layer_norm(x, state, f"{key}.norm1", eps=1e-5)
            token, grid, qkv = y[:, :prefix], to_map(y[:, prefix:], h, w), []
            for name, step in (("q", 1), ("k", 2), ("v", 2)):
                z = conv(grid, state, f"{key}.attn.conv_{name}.conv", step, padding=1, groups=dim)
                z = to_tokens(batch_norm(z, state, f"{key}.attn.conv_{name}.bn"))
                qkv.append(linear(torch.cat([token, z], 1), state, f"{key}.attn.{name}"))
            x = x + linear(attend(*qkv, num_heads[s], dim**-0.5), state, f"{key}.attn.proj")
            y = layer_norm(x, state, f"{key}.norm2", eps=1e-5)
            x = x + mlp(y, state, f"{key}.mlp", activation=lambda t: t * torch.sigmoid(1.702 * t))
            maps.append(x[:, prefix:])
        x = x if prefix else to_map(x, h, w)
    return classify(x[:, 0], state, eps=1e-5), maps


COMPOSITIONS = {
    "deit_tiny_patch16_224": deit,
    "t2t_vit_7": t2t,
    "pit_ti_224": pit,
    "pvt_tiny": pvt,
    "pvt_v2_b0": pvt_v2,
    "convit_tiny": convit,
    "cvt_13": cvt,
}
