"""Fuses residual + LayerNorm, bias + GELU and patch convolutions of timm-style models, in place and reversibly.

    report = lgfast.fuse_layers(model)
    print(report)

A fused module is the same module with another class: weights, state-dict keys and the block's own hooks stay, and a
block still returns the residual stream. In a block the addition of the attention branch, its stochastic depth and the
second norm become `ops.add_layer_norm`; in an MLP the first bias and the activation become `ops.bias_gelu`. Where those
inner modules (drop_path1, norm2, fc1, act) are more than plain ones, as with hooks, pruned, parametrized or replaced by
an adapter, before fusing or after, they run as they are. A convolution whose windows tile its map (patch embeddings,
the key reduction of PVT) becomes one matrix product on CUDA.

On a CPU in float32 PyTorch's own operations are faster than these, and a whole block is faster than both: after `fuse`,
a block of plain modules without dropout, layer scale and stochastic depth becomes `ops.vit_block` there, and all else
runs unfused.
"""

import lgfast.models  # noqa: F401  before timm, for what it says where torchvision does not fit torch

# isort: split
import torch
import torch.nn.functional as F
from timm.layers import GELU, DropPath, Mlp
from timm.models import pvt_v2, vision_transformer
from torch import Tensor, nn

from lgfast._extension import has_native
from lgfast.fusion.block import is_whole_block, run_whole_block
from lgfast.fusion.class_swap import ClassSwap, FuseReport
from lgfast.fusion.plain import not_plain_reason, warn_of_original
from lgfast.models import cvt, pvt
from lgfast.ops import add_layer_norm, bias_gelu
from lgfast.ops.add_layer_norm import add_layer_norm_channels_reason
from lgfast.ops.bias_gelu import bias_gelu_channels_reason
from lgfast.ops.short_attention import compute_dtype


def fuse_layers(model: nn.Module) -> FuseReport:
    """Swap every block and MLP of `model` that the operations can serve; doing so twice changes nothing.

    >>> import timm
    >>> fuse_layers(timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32)).fused
    ('patch_embed.proj', 'blocks.0', 'blocks.0.mlp')
    """
    return _swap.swap(model)


def unfuse_layers(model: nn.Module) -> None:
    """Undo `fuse_layers`.

    >>> import timm
    >>> model = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32)
    >>> report = fuse_layers(model)
    >>> unfuse_layers(model)
    >>> type(model.blocks[0].mlp) is timm.layers.Mlp
    True
    """
    _swap.undo(model)


def fused_layers_pay(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `fuse_layers` is known to make training faster there: where it runs whole blocks."""
    return device.type == "cpu" and dtype == torch.float32 and has_native()


def _is_wide_on_cpu(x: Tensor) -> bool:
    """Whether PyTorch's own operations compute x faster than add_layer_norm and bias_gelu."""
    return x.device.type == "cpu" and compute_dtype(x) in (torch.float32, torch.float64)


def _looks_like_block(module: nn.Module) -> bool:
    return all(isinstance(getattr(module, name, None), nn.Module) for name in ("norm1", "norm2", "mlp"))


def _refusal(module: nn.Module) -> str | None:
    if not _swap.knows(module):
        return "no fused form of its class"
    if isinstance(module, nn.Conv2d):
        return None
    return _mlp_refusal(module) if isinstance(module, Mlp) else _block_refusal(module)


_swap = ClassSwap(
    "blocks and MLPs use lgfast.ops.add_layer_norm and bias_gelu, patch convolutions on CUDA a matrix product",
    _looks_like_block,
    _refusal,
)


def _block_refusal(block: nn.Module) -> str | None:
    """Why a block cannot be fused, or in this call not; None where it can."""
    norm = block.norm2
    reason = not_plain_reason(norm, nn.LayerNorm, vision_transformer.LayerNorm)
    if reason is not None:
        return f"norm2 must be a plain LayerNorm, {reason}"
    if norm.weight is None or norm.bias is None or getattr(norm, "_fast_norm", False):
        return "norm2 must have weight and bias, and not timm's fast norm"
    reason = not_plain_reason(block.drop_path1, DropPath, nn.Identity)
    if reason is not None:
        return f"drop_path1 must be timm's DropPath, {reason}"
    return add_layer_norm_channels_reason(norm.normalized_shape[-1])


def _mlp_refusal(mlp: Mlp) -> str | None:
    """Why an MLP cannot be fused, or in this call not; None where it can."""
    fc1, act = mlp.fc1, mlp.act
    reason = not_plain_reason(fc1, nn.Linear)
    if reason is not None or fc1.bias is None:
        return f"fc1 must be a plain nn.Linear with a bias, {reason or 'got one without'}"
    reason = not_plain_reason(act, nn.GELU, GELU)
    if reason is not None or getattr(act, "approximate", "none") != "none":
        return f"its activation must be the exact GELU, {reason or 'got an approximation'}"
    return bias_gelu_channels_reason(fc1.out_features)


def _tiles_its_map(conv: nn.Conv2d) -> bool:
    """Whether the windows neither overlap nor leave gaps, so that each pixel is read once."""
    is_plain = conv.groups == 1 and conv.dilation == (1, 1) and conv.padding in ((0, 0), "valid")
    return is_plain and conv.kernel_size == conv.stride != (1, 1)


def drop_scale(drop_path: nn.Module, x: Tensor) -> Tensor | None:
    """The factor [B] by which timm's DropPath would multiply the samples of x [B, ...], in the same draw; None: 1."""
    if not isinstance(drop_path, DropPath) or drop_path.drop_prob == 0 or not drop_path.training:
        return None
    keep_prob = 1 - drop_path.drop_prob
    scale = x.new_empty(x.shape[0]).bernoulli_(keep_prob)
    return scale.div_(keep_prob) if keep_prob > 0 and drop_path.scale_by_keep else scale


def _add_and_normalise(block: nn.Module, branch: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The residual stream after the attention branch, and its norm."""
    norm, reason = block.norm2, _block_refusal(block)
    if reason is not None:
        warn_of_original(block, reason)
    if reason is not None or _is_wide_on_cpu(x):
        x = x + block.drop_path1(branch)
        return x, norm(x)
    return add_layer_norm(branch, x, norm.weight, norm.bias, norm.eps, drop_scale(block.drop_path1, branch))


@_swap.register(vision_transformer.Block)
class FusedVitBlock(vision_transformer.Block):
    """Pre-norm block of timm's Vision Transformer family: ViT, DeiT, PiT, T2T."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        if attn_mask is None and not is_causal and is_whole_block(self, x, (Mlp, FusedMlp)):
            return run_whole_block(self, x)
        branch = self.ls1(self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=is_causal))
        x, normed = _add_and_normalise(self, branch, x)
        return x + self.drop_path2(self.ls2(self.mlp(normed)))


@_swap.register(pvt_v2.Block)
class FusedPvtV2Block(pvt_v2.Block):
    """PVTv2's block. Its MLP stays, for it has a convolution between projection and activation."""

    def forward(self, x: Tensor, feat_size: tuple[int, int]) -> Tensor:
        x, normed = _add_and_normalise(self, self.attn(self.norm1(x), feat_size), x)
        return x + self.drop_path2(self.mlp(normed, feat_size))


class _FusedGridBlock(nn.Module):
    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        x, normed = _add_and_normalise(self, self.attn(self.norm1(x), grid), x)
        return x + self.drop_path2(self.mlp(normed))


@_swap.register(pvt.Block)
class FusedPvtBlock(_FusedGridBlock, pvt.Block):
    """PVT's block."""


@_swap.register(cvt.Block)
class FusedCvtBlock(_FusedGridBlock, cvt.Block):
    """CvT's block. Its QuickGELU stays."""


@_swap.register(Mlp)
class FusedMlp(Mlp):
    """timm's MLP."""

    def forward(self, x: Tensor) -> Tensor:
        reason = _mlp_refusal(self)
        if reason is not None:
            warn_of_original(self, reason)
        if reason is not None or _is_wide_on_cpu(x):
            return super().forward(x)
        x = bias_gelu(F.linear(x, self.fc1.weight), self.fc1.bias)
        return self.drop2(self.fc2(self.norm(self.drop1(x))))


@_swap.register(nn.Conv2d, only=_tiles_its_map)
class FusedPatchConv(nn.Conv2d):
    """A convolution over patches that tile the map. On a CPU the convolution is no slower, so it stays."""

    def forward(self, x: Tensor) -> Tensor:
        has_patches = x.ndim == 4 and x.shape[2] >= self.kernel_size[0] and x.shape[3] >= self.kernel_size[1]
        return patch_product(x, self.weight, self.bias) if x.is_cuda and has_patches else super().forward(x)


def patch_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.conv2d with the stride of its kernel, as one matrix product.

    Args:
        x: [B, C, H, W], of at least a patch; what is left beyond whole patches is not read.
        weight: [E, C, h, w].
    Returns:
        [B, E, H // h, W // w], a view of tokens [B, N, E], so that flattening it to tokens copies nothing.
    """
    h, w = weight.shape[2:]
    grid = x.shape[2] // h, x.shape[3] // w
    patches = x[:, :, : grid[0] * h, : grid[1] * w].unflatten(2, (grid[0], h)).unflatten(4, (grid[1], w))
    if x.stride(1) == 1:  # channels last: a patch in the order of its memory, too
        patches, weight = patches.permute(0, 2, 4, 3, 5, 1), weight.permute(0, 2, 3, 1)
    else:
        patches = patches.permute(0, 2, 4, 1, 3, 5)
    return F.linear(patches.flatten(3).flatten(1, 2), weight.flatten(1), bias).transpose(1, 2).unflatten(2, grid)
