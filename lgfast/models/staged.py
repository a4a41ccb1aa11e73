"""The common part of PVT and CvT: stages that pass maps on, a class token in the last, timm's model interface."""

from collections.abc import Callable

import torch
from timm.models import checkpoint
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from lgfast.models.layers import device_and_dtype, map_to_tokens, prepend, tokens_to_map

Grid = tuple[int, int]


class Stage(nn.Module):
    """Embeds a map [B, C, H, W] as tokens and runs blocks on them.

    Args:
        embed: [B, C, H, W] to tokens [B, h*w, C] and their grid, as `ConvEmbed`.
        blocks: called as `block(tokens, grid)`; prefix tokens come first.
        pos_embed: learned positions [1, prefix + h*w, C], or None.
    """

    def __init__(self, embed: nn.Module, blocks: list[nn.Module], pos_embed: nn.Parameter | None = None):
        super().__init__()
        self.patch_embed = embed
        self.pos_embed = pos_embed
        self.blocks = nn.ModuleList(blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor, cls_token: Tensor | None = None) -> tuple[Tensor, Grid]:
        x, grid = self.patch_embed(x)
        x = prepend(cls_token, x)
        if self.pos_embed is not None:
            x = x + self.pos_embed
        for block in self.blocks:
            x = checkpoint(block, x, grid) if self.grad_checkpointing else block(x, grid)
        return x, grid


class ConvEmbed(nn.Module):
    """Convolution, then LayerNorm over channels: [B, C, H, W] to tokens [B, h*w, D] and their grid."""

    def __init__(self, in_dim: int, dim: int, kernel_size: int, stride: int, padding: int, norm_layer, **dd):
        super().__init__()
        self.proj = nn.Conv2d(in_dim, dim, kernel_size, stride, padding, **dd)
        self.norm = norm_layer(dim, **dd)

    def forward(self, x: Tensor) -> tuple[Tensor, Grid]:
        x = self.proj(x)
        return self.norm(map_to_tokens(x)), (x.shape[2], x.shape[3])


class StagedTransformer(nn.Module):
    """A hierarchy of stages; a class token joins in the last one and is classified after a LayerNorm.

    Subclasses call `build` at the end of their constructor.
    """

    def build(
        self,
        stages: list[Stage],
        dims: tuple[int, ...],
        reductions: tuple[int, ...],
        num_classes: int,
        in_chans: int,
        global_pool: str,
        drop_rate: float,
        norm_layer: Callable[..., nn.Module],
        **dd,
    ) -> None:
        self.num_classes, self.in_chans, self.global_pool = num_classes, in_chans, check_pool(global_pool)
        self.num_prefix_tokens = 1
        self.num_features = self.head_hidden_size = self.embed_dim = dims[-1]
        self.feature_info = [
            {"num_chs": dim, "reduction": reduction, "module": f"stages.{i}"}
            for i, (dim, reduction) in enumerate(zip(dims, reductions, strict=True))
        ]
        self.stages = nn.ModuleList(stages)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dims[-1], **dd))
        self.norm = norm_layer(dims[-1], **dd)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(dims[-1], num_classes, **dd) if num_classes > 0 else nn.Identity()

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith(("cls_token", "pos_embed"))}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        stem, last = r"^stages\.0\.(?:patch_embed|pos_embed)", (r"^norm|cls_token", (99999,))
        if coarse:
            return {"stem": stem, "blocks": [(r"^stages\.(\d+)", None), last]}
        # what leads into a stage comes before its first block
        into = (r"^stages\.(\d+)\.(?:patch_embed|pos_embed)", (-1,))
        out_of = (r"^stages\.(\d+)\.norm", (99998,))
        return {"stem": stem, "blocks": [(r"^stages\.(\d+)\.blocks\.(\d+)", None), into, last, out_of]}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for stage in self.stages:
            stage.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        dd = device_and_dtype(self)
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = check_pool(global_pool)
        self.head = nn.Linear(self.num_features, num_classes, **dd) if num_classes > 0 else nn.Identity()

    def forward_stages(self, x: Tensor, num_stages: int) -> tuple[Tensor, list[Tensor]]:
        """Tokens of the last stage run, and the map [B, C, h, w] of each, class token removed."""
        tokens, maps, last = x, [], len(self.stages) - 1
        for i, stage in enumerate(self.stages[:num_stages]):
            tokens, grid = stage(x, self.cls_token if i == last else None)
            x = tokens_to_map(tokens[:, 1:] if i == last else tokens, grid)
            maps.append(x)
        return tokens, maps

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Stage maps, as timm's hierarchical models give them; `norm` fits the last stage only and is not applied."""
        if output_fmt != "NCHW":
            raise ValueError(f"{type(self).__name__}: output_fmt must be 'NCHW', got {output_fmt!r}")
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        tokens, maps = self.forward_stages(x, max_index + 1 if stop_early else len(self.stages))
        intermediates = [maps[i] for i in sorted(take_indices)]
        if intermediates_only:
            return intermediates
        return (self.norm(tokens) if len(maps) == len(self.stages) else tokens), intermediates

    def forward_features(self, x: Tensor) -> Tensor:
        tokens, _ = self.forward_stages(x, len(self.stages))
        return self.norm(tokens)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        if self.global_pool:
            x = x[:, 0] if self.global_pool == "token" else x[:, 1:].mean(1)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def check_pool(global_pool: str) -> str:
    if global_pool not in ("", "token", "avg"):
        raise ValueError(f"global_pool must be 'token', 'avg' or '', got {global_pool!r}")
    return global_pool
