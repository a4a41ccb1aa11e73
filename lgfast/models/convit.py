"""ConViT: timm's model with its positional attention computed once a layer instead of once an image."""

import torch
import torch.nn.functional as F
from timm.models.convit import GPSA, MHSA
from torch import Tensor, nn

from lgfast.models.layers import merge_heads, split_heads


class PositionalAttention(GPSA):
    """Gated positional self-attention, the same function as timm's, in parts that need no N x N map per image.

        out = proj((1 - g) softmax(q k^T scale) v + g softmax(pos_proj(r)) v),   g = sigmoid(gating_param)

    Both softmaxes sum to one over the keys, so their mix needs no renormalising. The position softmax does
    not depend on the image: it is computed once a layer, by autocast too in the precision of its weights.
    """

    rel_indices: Tensor

    def position_weights(self) -> Tensor:
        """g softmax(pos_proj(r)) as [H, N, N]."""
        with torch.autocast(self.gating_param.device.type, enabled=False):
            scores = self.pos_proj(self.rel_indices)[0].permute(2, 0, 1)
            return torch.sigmoid(self.gating_param)[:, None, None] * scores.softmax(dim=-1)

    def content_attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """softmax(q k^T scale) v on [B, H, N, D], the part a fused kernel can serve."""
        return F.scaled_dot_product_attention(q, k, v, scale=self.scale)

    def forward(self, x: Tensor) -> Tensor:
        if self.rel_indices.shape[1] != x.shape[1]:
            self.rel_indices = self.get_rel_indices(x.shape[1])
        q, k = (split_heads(half, self.num_heads) for half in self.qk(x).chunk(2, dim=-1))
        v = split_heads(self.v(x), self.num_heads)
        content = self.content_attention(q, k, v)
        content_gate = torch.sigmoid(-self.gating_param)[:, None, None].to(v.dtype)
        position = torch.einsum("hnm,bhmd->bhnd", self.position_weights().to(v.dtype), v)
        x = content_gate * content + position
        return self.proj_drop(self.proj(merge_heads(x)))


class Attention(MHSA):
    """timm's plain attention of ConViT, through scaled_dot_product_attention."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(third, self.num_heads) for third in self.qkv(x).chunk(3, dim=-1))
        x = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.proj_drop(self.proj(merge_heads(x)))


def use_fast_attention(model: nn.Module) -> None:
    """Swap both kinds of attention in place; state-dict keys and weights stay. Not with attention dropout."""
    for module in model.modules():
        if type(module) in (GPSA, MHSA) and module.attn_drop.p == 0:
            module.__class__ = PositionalAttention if type(module) is GPSA else Attention
        if isinstance(module, GPSA):
            module.rel_indices = module.get_rel_indices(model.num_patches)
