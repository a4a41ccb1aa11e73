"""Swaps the attention of timm models for lgfast's kernels, in place and reversibly.

    report = lgfast.fuse(model)
    print(report)

A fused module is the same module with another class: weights, state-dict keys and hooks stay. It calls its projection
where that is more than a plain one, as with hooks, pruned, parametrized or replaced by an adapter. It runs its original
forward, bit for bit, on inputs the kernels do not take (`ops.short_attention_unsupported_reason`: float32 on CUDA, a
mask), and where its own switches ask for it: `fused_attn` off, a changed `scale`, attention dropout.
"""

from collections.abc import Callable

import lgfast.models  # noqa: F401  before timm, for what it says where torchvision does not fit torch

# isort: split
import torch
import torch.nn.functional as F
from timm.layers.attention import Attention as VitAttention
from timm.models import convit as timm_convit
from timm.models import pvt_v2, swin_transformer, swin_transformer_v2
from torch import Tensor, nn

from lgfast.fusion.class_swap import ClassSwap, FuseReport
from lgfast.fusion.plain import is_plain, warn_of_original
from lgfast.models import convit, cvt, t2t
from lgfast.models.layers import merge_heads, split_heads
from lgfast.ops import short_attention, short_attention_qkvpacked
from lgfast.ops.short_attention import (
    FEW_KEYS,
    HEAD_DIMS,
    MAX_QUERIES_FEW_KEYS,
    MAX_TOKENS,
    compute_dtype,
    unsupported_device_reason,
    unsupported_shape_reason,
)

_refusals: dict[type, str] = {  # attention classes that short_attention cannot compute
    swin_transformer.WindowAttention: "adds a relative position bias to the scores",
    swin_transformer_v2.WindowAttention: "its scores are cosines plus a relative position bias",
    t2t.PerformerLayer: "linear attention: its scores take no softmax",
}


def fuse(model: nn.Module) -> FuseReport:
    """Swap every attention module of `model` that short_attention can serve; fusing twice changes nothing.

    Weights, state-dict keys and hooks stay, so a model can be fused before or after loading, and copied or pickled.

    Args:
        model: changed in place; timm's models, and others built of timm's attention.
    Returns:
        What was swapped and what not, and why; `print` it.

    >>> import timm
    >>> model = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32)
    >>> fuse(model).fused
    ('blocks.0.attn', 'blocks.1.attn')
    """
    return _swap.swap(model)


def unfuse(model: nn.Module) -> None:
    """Undo `fuse`.

    >>> import timm
    >>> model = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32)
    >>> report = fuse(model)
    >>> unfuse(model)
    >>> type(model.blocks[0].attn) is timm.layers.Attention
    True
    """
    _swap.undo(model)


def register_fused(attention: type[nn.Module]) -> Callable[[type], type]:
    """Class decorator: the decorated subclass of `attention` is its fused form. It has `num_heads` and `head_dim`."""
    return _swap.register(attention)


def _is_attention(module: nn.Module) -> bool:
    name = type(module).__name__
    is_named_so = "Attention" in name or (name.endswith("Attn") and "Block" not in name)
    return type(module) in _refusals or is_named_so


def _refusal(module: nn.Module) -> str | None:
    if type(module) in _refusals:
        return _refusals[type(module)]
    if not _swap.knows(module):
        return "no fused form is registered (lgfast.fusion.register_fused)"
    if _head_dim(module) not in HEAD_DIMS:
        return f"head dim must be 32, 48 or 64, got {_head_dim(module)}"
    if _dropout(module) > 0:
        return f"attention dropout {_dropout(module)} needs the probabilities, which the kernels do not keep"
    return switch_reason(module)


def switch_reason(module: nn.Module) -> str | None:
    """Why a module's own switches keep the kernels from it, or None."""
    if not getattr(module, "fused_attn", True):
        return "its fused_attn is off"
    if isinstance(module, (VitAttention, pvt_v2.Attention)) and module.scale != module.head_dim**-0.5:
        return f"its scale is {module.scale}, not head_dim**-0.5"  # which these give to SDPA
    if module.training and _dropout(module) > 0:
        return "attention dropout needs the probabilities, which the kernels do not keep"
    if isinstance(module, (timm_convit.MHSA, timm_convit.GPSA)) and not is_plain(module.attn_drop, nn.Dropout):
        return "its attn_drop has hooks or is not nn.Dropout, and sees the probabilities"
    return None


def _limits(model: nn.Module) -> str:
    limits = (
        f"its kernels take bfloat16 or float16, on CPU also float32, {MAX_TOKENS} keys and {MAX_TOKENS} queries at "
        f"most ({MAX_QUERIES_FEW_KEYS} queries over {FEW_KEYS} keys); on a larger input a module runs PyTorch's "
        "attention"
    )
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    reason = unsupported_device_reason(device) if device.type in ("cpu", "cuda") else None
    return limits if reason is None else f"{limits}; but on {device}: {reason}"


_swap = ClassSwap("attention modules use lgfast.ops.short_attention", _is_attention, _refusal, _limits)


def _head_dim(module: nn.Module) -> int:
    return getattr(module, "head_dim", None) or module.proj.in_features // module.num_heads


def _dropout(module: nn.Module) -> float:
    return getattr(module.attn_drop, "p", 0.0)


def _allows_kernels(module: nn.Module) -> bool:
    """Whether the module's switches leave this call to the kernels; where they do not, warn once."""
    reason = switch_reason(module)
    if reason is not None:
        warn_of_original(module, reason)
    return reason is None


def _is_served(module: nn.Module, x: Tensor, num_keys: int | None) -> bool:
    """Whether the kernels compute a module's attention of tokens x [B, N, C] over `num_keys` keys (None: unknown)."""
    if num_keys is None or not _allows_kernels(module):
        return False
    head_dim = getattr(module, "head_dim", None) or x.shape[2] // module.num_heads  # a wrapped proj may not know
    return unsupported_shape_reason(x.device, compute_dtype(x), x.shape[1], num_keys, head_dim) is None


@register_fused(VitAttention)
class FusedVitAttention(VitAttention):
    """Attention of timm's Vision Transformer family: ViT, DeiT, PiT, T2T."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        if attn_mask is not None or is_causal or not _is_served(self, x, x.shape[1]):
            return super().forward(x, attn_mask, is_causal)
        gate = self.gate(x).sigmoid() if self.gate is not None else None
        out = self.norm(self._attend(x))
        if gate is not None:
            out = out * gate
        return self.proj_drop(self.proj(out))

    def _attend(self, x: Tensor) -> Tensor:
        has_norms = not (is_plain(self.q_norm, nn.Identity) and is_plain(self.k_norm, nn.Identity))
        if has_norms:
            q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
            return merge_heads(short_attention(self.q_norm(q), self.k_norm(k), v, layout="bhnd"))
        if not is_plain(self.qkv, nn.Linear):
            return short_attention_qkvpacked(self.qkv(x).unflatten(2, (3, self.num_heads, -1)))
        # The attention kernel sums the bias gradient, so the projection's own backward need not.
        bias = self.qkv.bias
        qkv = F.linear(x, self.qkv.weight, None if bias is None else bias.detach())
        return short_attention_qkvpacked(qkv.unflatten(2, (3, self.num_heads, -1)), added_bias=bias)


@register_fused(pvt_v2.Attention)
class FusedPvtAttention(pvt_v2.Attention):
    """Attention of PVTv2 and PVT: keys and values of a reduced map."""

    def forward(self, x: Tensor, feat_size: tuple[int, int]) -> Tensor:
        if not _is_served(self, x, self._num_keys(x, feat_size)):
            return super().forward(x, feat_size)
        q = self.q(x).unflatten(2, (self.num_heads, -1))
        k, v = self.kv(self._reduce(x, feat_size)).unflatten(2, (2, self.num_heads, -1)).unbind(2)
        return self.proj_drop(self.proj(short_attention(q, k, v, layout="bnhd").flatten(2)))

    def _num_keys(self, x: Tensor, feat_size: tuple[int, int]) -> int | None:
        if self.pool is not None:
            return 49
        if self.sr is None:
            return x.shape[1]
        if not isinstance(self.sr, nn.Conv2d):
            return None
        return (feat_size[0] // self.sr.stride[0]) * (feat_size[1] // self.sr.stride[1])

    def _reduce(self, x: Tensor, feat_size: tuple[int, int]) -> Tensor:
        if self.sr is None:
            return x
        x = x.transpose(1, 2).unflatten(2, tuple(feat_size))
        x = self.norm(self.sr(x if self.pool is None else self.pool(x)).flatten(2).transpose(1, 2))
        return x if self.act is None else self.act(x)


@register_fused(cvt.Attention)
class FusedCvtAttention(cvt.Attention):
    """CvT: projections by convolution, half as many keys each way as queries.

    At 224 the first stage has 3,136 queries over 784 keys, more than the kernels take: it runs PyTorch's SDPA.
    """

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        if not _allows_kernels(self):
            return super().forward(x, grid)
        x = short_attention(*self.project_qkv(x, grid), self.scale, layout="bhnd")
        return self.proj_drop(self.proj(merge_heads(x)))


@register_fused(convit.Attention)
class FusedConvitAttention(convit.Attention):
    """ConViT's plain attention."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(third, self.num_heads) for third in self.qkv(x).chunk(3, dim=-1))
        return self.proj_drop(self.proj(merge_heads(short_attention(q, k, v, self.scale, layout="bhnd"))))


@register_fused(convit.PositionalAttention)
class FusedPositionalAttention(convit.PositionalAttention):
    """ConViT's gated attention: its content part; the position part is one [H, N, N] matrix for all images."""

    def content_attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return short_attention(q, k, v, self.scale, layout="bhnd")


@register_fused(timm_convit.MHSA)
class FusedTimmConvitAttention(FusedConvitAttention):
    """The plain attention of timm's own ConViT."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if _is_served(self, x, x.shape[1]) else timm_convit.MHSA.forward(self, x)


@register_fused(timm_convit.GPSA)
class FusedTimmPositionalAttention(FusedPositionalAttention):
    """The gated attention of timm's own ConViT. It mixes two softmaxes by g and 1 - g."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if _is_served(self, x, x.shape[1]) else timm_convit.GPSA.forward(self, x)
