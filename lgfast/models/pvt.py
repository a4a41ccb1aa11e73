"""PVT-Ti (version 1): a pyramid of transformers with spatially reduced keys and values."""

from functools import partial

import torch
from timm.layers import DropPath, Mlp, calculate_drop_path_rates, to_2tuple
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.pvt_v2 import Attention
from torch import Tensor, nn

from lgfast.models.layers import init_linear, model_cfg, set_layer_norm_eps
from lgfast.models.staged import ConvEmbed, Grid, Stage, StagedTransformer

PATCH_SIZES = (4, 2, 2, 2)
EPS = 1e-6


class Block(nn.Module):
    """Pre-norm block; attention is timm's of PVTv2, whose keys and values come from a strided convolution."""

    def __init__(self, dim, num_heads, mlp_ratio, sr_ratio, qkv_bias, proj_drop, attn_drop, drop_path, **dd):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, **dd)
        self.attn = Attention(dim, num_heads, sr_ratio, False, qkv_bias, attn_drop, proj_drop, **dd)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop, **dd)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x), grid))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class PyramidVisionTransformer(StagedTransformer):
    """PVT: non-overlapping patch embeddings, learned positions per stage, a class token in the last stage.

    Args:
        img_size: side of the input; the position embeddings have its grids (side // 4, // 8, // 16, // 32).
        sr_ratios: kernel and stride of the convolution that reduces keys and values, per stage.
    Source: Wang et al., ICCV 2021 (arXiv 2102.12122), with the paper's epsilons and initialisation.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dims: tuple[int, ...] = (64, 128, 320, 512),
        depths: tuple[int, ...] = (2, 2, 2, 2),
        num_heads: tuple[int, ...] = (1, 2, 5, 8),
        mlp_ratios: tuple[float, ...] = (8, 8, 4, 4),
        sr_ratios: tuple[int, ...] = (8, 4, 2, 1),
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
        self.img_size = to_2tuple(img_size)
        rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stages, grid, in_dim = [], self.img_size, in_chans
        for i, dim in enumerate(embed_dims):
            grid = tuple(side // PATCH_SIZES[i] for side in grid)
            if min(grid) < sr_ratios[i]:
                raise ValueError(f"PyramidVisionTransformer: img_size must be at least 32, got {self.img_size}")
            block = partial(Block, dim, num_heads[i], mlp_ratios[i], sr_ratios[i], qkv_bias)
            blocks = [block(proj_drop_rate, attn_drop_rate, rate, **dd) for rate in rates[i]]
            num_positions = grid[0] * grid[1] + (i == len(embed_dims) - 1)
            positions = nn.Parameter(torch.empty(1, num_positions, dim, **dd))
            embed = ConvEmbed(in_dim, dim, PATCH_SIZES[i], PATCH_SIZES[i], 0, nn.LayerNorm, **dd)
            stages.append(Stage(embed, blocks, positions))
            in_dim = dim
        reductions = (4, 8, 16, 32)
        self.build(stages, embed_dims, reductions, num_classes, in_chans, global_pool, drop_rate, nn.LayerNorm, **dd)
        set_layer_norm_eps(self, EPS)
        self.init_weights()

    def init_weights(self) -> None:
        """Linear layers, class token and positions N(0, 0.02), biases 0; convolutions keep PyTorch's default."""
        self.apply(init_linear)
        for parameter in (self.cls_token, *(stage.pos_embed for stage in self.stages)):
            nn.init.normal_(parameter, std=0.02)

    def forward_stages(self, x: Tensor, num_stages: int) -> tuple[Tensor, list[Tensor]]:
        if tuple(x.shape[2:]) != self.img_size:
            raise ValueError(
                f"PyramidVisionTransformer: images must be {self.img_size}, got {tuple(x.shape[2:])}; set img_size"
            )
        return super().forward_stages(x, num_stages)


def _create_pvt(variant: str, pretrained: bool = False, **kwargs) -> PyramidVisionTransformer:
    feature_cfg = {"out_indices": kwargs.pop("out_indices", (0, 1, 2, 3)), "feature_cls": "getter"}
    return build_model_with_cfg(PyramidVisionTransformer, variant, pretrained, feature_cfg=feature_cfg, **kwargs)


default_cfgs = generate_default_cfgs(
    {"pvt_tiny": model_cfg(fixed_input_size=True, first_conv="stages.0.patch_embed.proj")}
)


@register_model
def pvt_tiny(pretrained: bool = False, **kwargs) -> PyramidVisionTransformer:
    """PVT-Tiny: widths 64/128/320/512, two blocks a stage."""
    return _create_pvt("pvt_tiny", pretrained, **kwargs)
