"""CvT-13: convolutional token embeddings and convolutional projections of q, k and v."""

from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, calculate_drop_path_rates, get_act_layer
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from lgfast.models.layers import init_linear, map_to_tokens, merge_heads, model_cfg, split_heads, tokens_to_map
from lgfast.models.staged import ConvEmbed, Grid, Stage, StagedTransformer


class ConvProjection(nn.Module):
    """Depthwise 3x3 convolution and BatchNorm on the token map; prefix tokens pass by."""

    def __init__(self, dim: int, stride: int, **dd):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, stride=stride, padding=1, groups=dim, bias=False, **dd)
        self.bn = nn.BatchNorm2d(dim, **dd)

    def forward(self, x: Tensor, prefix: Tensor) -> Tensor:
        x = map_to_tokens(self.bn(self.conv(x)))
        return torch.cat((prefix, x), dim=1) if prefix.shape[1] else x


class Attention(nn.Module):
    """Multi-head attention with convolutional projections; keys and values at half the resolution.

    The softmax scale is dim^-0.5, not head_dim^-0.5.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool, attn_drop: float, proj_drop: float, **dd):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = dim**-0.5
        self.conv_q = ConvProjection(dim, stride=1, **dd)
        self.conv_k = ConvProjection(dim, stride=2, **dd)
        self.conv_v = ConvProjection(dim, stride=2, **dd)
        self.q = nn.Linear(dim, dim, bias=qkv_bias, **dd)
        self.k = nn.Linear(dim, dim, bias=qkv_bias, **dd)
        self.v = nn.Linear(dim, dim, bias=qkv_bias, **dd)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def project_qkv(self, x: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
        """q [B, H, N, D], k and v [B, H, M, D] of tokens x [B, N, C], prefix first."""
        prefix, x = x.tensor_split((x.shape[1] - grid[0] * grid[1],), dim=1)
        x = tokens_to_map(x, grid)
        q = self.q(self.conv_q(x, prefix))
        k = self.k(self.conv_k(x, prefix))
        v = self.v(self.conv_v(x, prefix))
        return split_heads(q, self.num_heads), split_heads(k, self.num_heads), split_heads(v, self.num_heads)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        q, k, v = self.project_qkv(x, grid)
        dropout_p = self.attn_drop.p if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, scale=self.scale)
        return self.proj_drop(self.proj(merge_heads(x)))


class Block(nn.Module):
    """Pre-norm block with QuickGELU."""

    def __init__(self, dim, num_heads, mlp_ratio, qkv_bias, proj_drop, attn_drop, drop_path, **dd):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, **dd)
        self.attn = Attention(dim, num_heads, qkv_bias, attn_drop, proj_drop, **dd)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=get_act_layer("quick_gelu"), drop=proj_drop, **dd)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x), grid))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class ConvolutionalVisionTransformer(StagedTransformer):
    """CvT: overlapping convolutional embeddings, no position embedding, a class token in the last stage.

    Takes any input size. Stochastic depth grows over the blocks of the last stage only.

    Source: Wu et al., ICCV 2021 (arXiv 2103.15808), with the paper's initialisation.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dims: tuple[int, ...] = (64, 192, 384),
        depths: tuple[int, ...] = (1, 2, 10),
        num_heads: tuple[int, ...] = (1, 3, 6),
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        rates = [[0.0] * depth for depth in depths[:-1]] + [calculate_drop_path_rates(drop_path_rate, depths[-1])]
        stages, in_dim = [], in_chans
        for i, dim in enumerate(embed_dims):
            kernel_size, stride, padding = (7, 4, 2) if i == 0 else (3, 2, 1)
            embed = ConvEmbed(in_dim, dim, kernel_size, stride, padding, nn.LayerNorm, **dd)
            block = partial(Block, dim, num_heads[i], mlp_ratio, qkv_bias, proj_drop_rate, attn_drop_rate)
            stages.append(Stage(embed, [block(rate, **dd) for rate in rates[i]]))
            in_dim = dim
        self.build(stages, embed_dims, (4, 8, 16), num_classes, in_chans, global_pool, drop_rate, nn.LayerNorm, **dd)
        self.init_weights()

    def init_weights(self) -> None:
        """Linear layers and class token N(0, 0.02), biases 0; convolutions and the head's bias keep the default."""
        for module in (*self.stages, self.norm):
            module.apply(init_linear)
        nn.init.normal_(self.cls_token, std=0.02)
        if isinstance(self.head, nn.Linear):
            nn.init.normal_(self.head.weight, std=0.02)


def _create_cvt(variant: str, pretrained: bool = False, **kwargs) -> ConvolutionalVisionTransformer:
    feature_cfg = {"out_indices": kwargs.pop("out_indices", (0, 1, 2)), "feature_cls": "getter"}
    return build_model_with_cfg(
        ConvolutionalVisionTransformer,
        variant,
        pretrained,
        feature_cfg=feature_cfg,
        kwargs_filter=("img_size",),  # accepted as everywhere in timm; nothing depends on it
        **kwargs,
    )


default_cfgs = generate_default_cfgs({"cvt_13": model_cfg(first_conv="stages.0.patch_embed.proj")})


@register_model
def cvt_13(pretrained: bool = False, **kwargs) -> ConvolutionalVisionTransformer:
    """CvT-13: widths 64/192/384, depths 1/2/10."""
    return _create_cvt("cvt_13", pretrained, **kwargs)
