"""T2T-ViT-7 and -14: a tokens-to-token stem of two performer layers in front of timm's vision transformer."""

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm, Mlp, to_2tuple
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from lgfast.models.layers import init_linear, model_cfg, tokens_to_map

REDUCTION = 16  # three soft splits: stride 4, 2, 2


class PerformerLayer(nn.Module):
    """One attention layer with positive random features, one head; the skip starts at v, not at the input.

        z = v + proj(phi(q) (phi(k)^T v) / (phi(q) sum phi(k)))        out = z + mlp(norm2(z))
        phi(t) = exp(w t - |t|^2 / 2) / sqrt(m)                        k, q, v = split(kqv(norm1(x)))

    phi reaches exp(16) / sqrt(m) = 1.6e6, beyond float16, so features and sums are float32 at least,
    under autocast too.

    Args:
        in_dim, dim: width of the input tokens and of k, q, v and the output.
        num_features: m, rows of the fixed random matrix w [m, dim] (orthogonal, times sqrt(m)).
    Source: Choromanski et al., ICLR 2021; Yuan et al., ICCV 2021.
    """

    def __init__(self, in_dim: int, dim: int, num_features: int, norm_layer=LayerNorm, device=None, dtype=None):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.norm1 = norm_layer(in_dim, **dd)
        self.kqv = nn.Linear(in_dim, 3 * dim, **dd)
        self.w = nn.Parameter(torch.empty(num_features, dim, **dd), requires_grad=False)
        self.proj = nn.Linear(dim, dim, **dd)
        self.norm2 = norm_layer(dim, **dd)
        self.mlp = Mlp(dim, dim, **dd)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the fixed random features; the trainable parts are modules of their own."""
        nn.init.orthogonal_(self.w)
        self.w.mul_(math.sqrt(self.w.shape[0]))

    def features(self, x: Tensor, w: Tensor) -> Tensor:
        """phi(x): [B, N, dim] to [B, N, m]."""
        return torch.exp(x @ w.T - x.square().sum(-1, keepdim=True) / 2) / math.sqrt(w.shape[0])

    def attention(self, k: Tensor, q: Tensor, v: Tensor) -> Tensor:
        """phi(q) (phi(k)^T v), normalised, without any N x N matrix."""
        dtype = torch.promote_types(v.dtype, torch.float32)
        with torch.autocast(v.device.type, enabled=False):
            w = self.w.to(dtype)
            phi_k, phi_q = self.features(k.to(dtype), w), self.features(q.to(dtype), w)
            numerator = phi_q @ (phi_k.transpose(1, 2) @ v.to(dtype))
            denominator = phi_q @ phi_k.sum(1).unsqueeze(2)
            return (numerator / (denominator + 1e-8)).to(v.dtype)

    def forward(self, x: Tensor) -> Tensor:
        k, q, v = self.kqv(self.norm1(x)).chunk(3, dim=-1)
        x = v + self.proj(self.attention(k, q, v))
        return x + self.mlp(self.norm2(x))


class TokensToToken(nn.Module):
    """Overlapping soft splits (unfold 7/4, 3/2, 3/2), a performer layer after each of the first two.

    Replaces timm's PatchEmbed: images [B, C, S, S] to tokens [B, h*w, embed_dim].
    """

    def __init__(
        self,
        img_size=224,
        patch_size: int = REDUCTION,
        in_chans: int = 3,
        embed_dim: int = 256,
        token_dim: int = 64,
        bias: bool = True,
        dynamic_img_pad: bool = False,
        norm_layer=LayerNorm,
        device=None,
        dtype=None,
    ):
        super().__init__()
        if patch_size != REDUCTION or dynamic_img_pad:
            raise ValueError(f"T2TViT: patch_size is {REDUCTION} by construction and images are not padded")
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        features = token_dim // 2
        self.attention1 = PerformerLayer(in_chans * 7 * 7, token_dim, features, norm_layer, **dd)
        self.attention2 = PerformerLayer(token_dim * 3 * 3, token_dim, features, norm_layer, **dd)
        self.proj = nn.Linear(token_dim * 3 * 3, embed_dim, bias=bias, **dd)
        self.set_input_size(img_size)

    img_size: tuple[int, int]

    def set_input_size(self, img_size: int | tuple[int, int] | None = None, patch_size: int | None = None) -> None:
        if patch_size not in (None, REDUCTION):
            raise ValueError(f"T2TViT: patch_size is {REDUCTION} by construction, got {patch_size}")
        self.img_size = to_2tuple(img_size or self.img_size)
        self.grid_size = self.dynamic_feat_size(self.img_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]

    def feat_ratio(self, as_scalar: bool = True):
        return REDUCTION if as_scalar else (REDUCTION, REDUCTION)

    def split_sizes(self, img_size: tuple[int, int]) -> list[tuple[int, int]]:
        """Grid after each of the three soft splits."""
        height, width = ((side + 2 * 2 - 7) // 4 + 1 for side in img_size)
        first, second = (height, width), ((height + 1) // 2, (width + 1) // 2)
        return [first, second, ((second[0] + 1) // 2, (second[1] + 1) // 2)]

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        return self.split_sizes(img_size)[-1]

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[2:]) != self.img_size:
            raise ValueError(f"T2TViT: images must be {self.img_size}, got {tuple(x.shape[2:])}; set img_size")
        first, second, _ = self.split_sizes(self.img_size)
        x = self.attention1(F.unfold(x, 7, stride=4, padding=2).transpose(1, 2))
        x = F.unfold(tokens_to_map(x, first), 3, stride=2, padding=1).transpose(1, 2)
        x = F.unfold(tokens_to_map(self.attention2(x), second), 3, stride=2, padding=1).transpose(1, 2)
        return self.proj(x)


def sinusoid(num_positions: int, dim: int) -> Tensor:
    """Fixed position embedding [N, dim] in float64: angle(p, j) = p / 10000^(2 floor(j/2) / dim), sin and cos."""
    positions = torch.arange(num_positions, dtype=torch.float64)[:, None]
    exponents = torch.arange(dim, dtype=torch.float64).div(2, rounding_mode="floor") * 2 / dim
    angles = positions / 10000**exponents
    return torch.where(torch.arange(dim) % 2 == 0, angles.sin(), angles.cos())


class T2TViT(VisionTransformer):
    """Tokens-to-token vision transformer with a fixed sinusoidal position embedding.

    Blocks, head and feature interface are timm's VisionTransformer; arguments as there.

    Args:
        token_dim: width of the performer layers.
    Source: Yuan et al., ICCV 2021 (arXiv 2101.11986), with the paper's epsilons and initialisation.
    """

    def __init__(self, token_dim: int = 64, qkv_bias: bool = False, norm_layer=LayerNorm, **kwargs):
        stem = partial(TokensToToken, token_dim=token_dim, norm_layer=norm_layer)
        super().__init__(qkv_bias=qkv_bias, norm_layer=norm_layer, embed_layer=stem, **kwargs)

    @torch.no_grad()
    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Linear layers and class token N(0, 0.02), biases 0; sinusoidal positions."""
        for module in self.modules():
            if needs_reset and hasattr(module, "reset_parameters"):
                module.reset_parameters()
        self.apply(init_linear)
        nn.init.normal_(self.cls_token, std=0.02)
        self.fix_positions()

    @torch.no_grad()
    def fix_positions(self) -> None:
        """Write the sinusoid into `pos_embed`, position 0 for the class token, and freeze it."""
        _, num_positions, dim = self.pos_embed.shape
        self.pos_embed.requires_grad_(False).copy_(sinusoid(num_positions, dim))

    img_size: tuple[int, int]

    def set_input_size(self, img_size: int | tuple[int, int] | None = None, patch_size: int | None = None) -> None:
        super().set_input_size(img_size=img_size, patch_size=patch_size)
        self.fix_positions()


def _create_t2t(variant: str, pretrained: bool = False, **kwargs) -> T2TViT:
    feature_cfg = {"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"}
    return build_model_with_cfg(T2TViT, variant, pretrained, feature_cfg=feature_cfg, **kwargs)


_cfg = model_cfg(fixed_input_size=True, first_conv="patch_embed.attention1.kqv")
default_cfgs = generate_default_cfgs({"t2t_vit_7": _cfg, "t2t_vit_14": _cfg})


@register_model
def t2t_vit_7(pretrained: bool = False, **kwargs) -> T2TViT:
    """T2T-ViT-7: width 256, depth 7, 4 heads, MLP ratio 2."""
    args = {"embed_dim": 256, "depth": 7, "num_heads": 4, "mlp_ratio": 2.0}
    return _create_t2t("t2t_vit_7", pretrained, **{**args, **kwargs})


@register_model
def t2t_vit_14(pretrained: bool = False, **kwargs) -> T2TViT:
    """T2T-ViT-14: width 384, depth 14, 6 heads, MLP ratio 3."""
    args = {"embed_dim": 384, "depth": 14, "num_heads": 6, "mlp_ratio": 3.0}
    return _create_t2t("t2t_vit_14", pretrained, **{**args, **kwargs})
