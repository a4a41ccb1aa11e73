"""A whole block of timm's Vision Transformer as one operation, `ops.vit_block`."""

from timm.layers import GELU, DropPath
from timm.models import vision_transformer
from torch import Tensor, nn

from lgfast.fusion.attention import FusedVitAttention, switch_reason
from lgfast.fusion.plain import is_plain
from lgfast.ops import BlockParameters, vit_block, vit_block_unsupported_reason
from lgfast.ops.inputs import is_autocast


def run_whole_block(block: vision_transformer.Block, x: Tensor) -> Tensor:
    """Compute a block of which `is_whole_block` holds."""
    layers = (block.norm1, block.attn.qkv, block.attn.proj, block.norm2, block.mlp.fc1, block.mlp.fc2)
    parameters = BlockParameters(*(tensor for layer in layers for tensor in (layer.weight, layer.bias)))
    return vit_block(x, parameters, block.attn.num_heads, eps1=block.norm1.eps, eps2=block.norm2.eps)


def is_whole_block(block: vision_transformer.Block, x: Tensor, mlps: tuple[type[nn.Module], ...]) -> bool:
    """Whether the kernel of `vit_block` computes all that the block does to x [B, N, C].

    Its attention must be a fused one (`lgfast.fuse`), its MLP of a class of `mlps`, and the modules in them plain ones
    that drop nothing. Asked in every call, since modules change.
    """
    attn, mlp = block.attn, block.mlp
    return (
        is_plain(attn, FusedVitAttention)
        and is_plain(mlp, *mlps)
        and all(map(_is_plain_norm, (block.norm1, block.norm2)))
        and all(map(_is_plain_linear, (attn.qkv, attn.proj, mlp.fc1, mlp.fc2)))
        and all(map(_does_nothing, (block.ls1, block.ls2, block.drop_path1, block.drop_path2)))
        and all(map(_does_nothing, (attn.q_norm, attn.k_norm, attn.norm, attn.proj_drop, mlp.drop1, mlp.drop2)))
        and _does_nothing(mlp.norm)
        and _is_exact_gelu(mlp.act)
        and attn.gate is None
        and switch_reason(attn) is None
        and _is_served(block, x)
    )


def _is_served(block: vision_transformer.Block, x: Tensor) -> bool:
    is_alike = x.ndim == 3 and x.shape[2] == block.attn.proj.in_features and x.dtype == block.norm1.weight.dtype
    if not is_alike or is_autocast(x):
        return False
    return vit_block_unsupported_reason(x, block.attn.num_heads, block.mlp.fc1.out_features) is None


def _is_plain_norm(norm: nn.Module) -> bool:
    is_known = is_plain(norm, nn.LayerNorm, vision_transformer.LayerNorm) and not getattr(norm, "_fast_norm", False)
    return is_known and norm.weight is not None and norm.bias is not None


def _is_plain_linear(linear: nn.Module) -> bool:
    return is_plain(linear, nn.Linear) and linear.bias is not None


def _is_exact_gelu(act: nn.Module) -> bool:
    return is_plain(act, nn.GELU, GELU) and getattr(act, "approximate", "none") == "none"


def _does_nothing(module: nn.Module) -> bool:
    """Whether a module that may drop something or scale returns its input."""
    if is_plain(module, nn.Identity):
        return True
    if is_plain(module, nn.Dropout):
        return not module.training or module.p == 0
    return is_plain(module, DropPath) and (not module.training or module.drop_prob == 0)
