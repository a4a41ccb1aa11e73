"""Measure how far the heads of each layer look, from the attention that a network computes.

Mean attention distance (Dosovitskiy et al., 2021; Raghu et al., 2021): the distance in pixels of the input between a
patch and the patches it attends to, weighted by its attention to them, averaged over patches and images. Class tokens
are left out on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lgfast.fusion import unfuse
from lgfast.models.convit import PositionalAttention

MAX_PREFIX_TOKENS = 5  # a class token and four registers; more tokens could be patches


@dataclass(frozen=True)
class LayerDistance:
    """Distances of one attention module, in pixels: each head's mean, and that of a head that looks everywhere
    equally."""

    heads: list[float]
    uniform: float

    @property
    def mean(self) -> float:
        return sum(self.heads) / len(self.heads)


@torch.no_grad()
def attention_distances(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, LayerDistance]:
    """Return every head's mean attention distance, by the name of the attention module, in the order in which they run.

    Args:
        model: a network whose attention calls `scaled_dot_product_attention`, as timm's models and lgfast's do. Fused
            attention is undone, and the model stays in eval mode.
        batches: float [B, C, S, S] each, on the model's device.
    Raises:
        ValueError: no attention was seen, or images or a layer's tokens are not a square.
    """
    unfuse(model.eval())
    recorder = _Recorder()
    for images in batches:
        if images.shape[-1] != images.shape[-2]:
            raise ValueError(f"batches: expected square images, got {tuple(images.shape)}")
        recorder.image_size, recorder.num_batches = images.shape[-1], recorder.num_batches + 1
        with _names_of(model) as recorder.running, recorder:
            model(images)
    if not recorder.sums:
        seen = f"{type(model).__name__} made no such call in {recorder.num_batches} batches"
        raise ValueError(f"model: expected attention that calls scaled_dot_product_attention; {seen}")
    return {
        name: LayerDistance((total / recorder.counts[name]).tolist(), recorder.uniform[name])
        for name, total in recorder.sums.items()
    }


@torch.no_grad()
def attention_maps(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return attention [B, H, N, M] of queries to keys, float32 on the CPU, by module, in the order in which they run.

    Args:
        model, images: as in `attention_distances`.
    Raises:
        ValueError: no attention was seen.
    """
    unfuse(model.eval())
    keeper = _Keeper()
    with _names_of(model) as keeper.running, keeper:
        model(images)
    if not keeper.maps:
        raise ValueError(f"model: {type(model).__name__} made no call of scaled_dot_product_attention")
    return keeper.maps


def rollout(maps: Sequence[Tensor]) -> Tensor:
    """Compute attention rollout (Abnar and Zuidema, ACL 2020): how much each token of the last layer uses each of the
    first.

    Args:
        maps: [B, H, N, N] each, in the order of the layers. A residual connection around each is assumed.
    Returns:
        [B, N, N]; rows sum to 1.
    Raises:
        ValueError: the layers have different numbers of tokens.
    """
    if len({size for attention in maps for size in attention.shape[-2:]}) != 1:
        raise ValueError("rollout: expected layers of one number of tokens each, as of DeiT")
    total = torch.eye(maps[0].shape[-1])
    for attention in maps:
        step = attention.mean(1) / 2 + torch.eye(attention.shape[-1]) / 2
        total = step / step.sum(-1, keepdim=True) @ total
    return total


@contextmanager
def _names_of(model: nn.Module) -> Iterator[list[tuple[str, nn.Module]]]:
    """Keep the names of the modules that are running, outermost first."""
    running: list[tuple[str, nn.Module]] = []
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda module, args, name=name: running.append((name, module))))
        handles.append(module.register_forward_hook(lambda *args: running.pop() and None))
    try:
        yield running
    finally:
        for handle in handles:
            handle.remove()


class _Reader(TorchFunctionMode):
    """A torch function mode that sees every attention call under it."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[tuple[str, nn.Module]] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is F.scaled_dot_product_attention:
            with torch._C.DisableTorchFunction():
                self.read(*args[:2], **kwargs or {})
        return func(*args, **kwargs or {})

    def read(self, q: Tensor, k: Tensor, scale: float | None = None, **_: Any) -> None:
        name, module = self.running[-1]
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        attention = (scale * q.float() @ k.float().transpose(-2, -1)).softmax(-1)
        if isinstance(module, PositionalAttention):
            gate = torch.sigmoid(-module.gating_param.float())[:, None, None]
            attention = gate * attention + module.position_weights().float()
        self.see(name, attention)

    def see(self, name: str, attention: Tensor) -> None:
        """
        Args:
            name: of the attention module.
            attention: [B, H, N, M], of queries to keys.
        """
        raise NotImplementedError  # abstract: subclasses keep the attention, or sum up its distances


class _Keeper(_Reader):
    """Keeps every attention."""

    def __init__(self) -> None:
        super().__init__()
        self.maps: dict[str, Tensor] = {}

    def see(self, name: str, attention: Tensor) -> None:
        self.maps[name] = attention.cpu()


class _Recorder(_Reader):
    """Sums up the distances of every attention."""

    def __init__(self) -> None:
        super().__init__()
        self.image_size = self.num_batches = 0
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.uniform: dict[str, float] = {}

    def see(self, name: str, attention: Tensor) -> None:
        queries, keys = (grid_side(name, tokens) for tokens in attention.shape[-2:])
        between = _distances(queries, keys, self.image_size).to(attention.device)
        heads = _mean_distances(attention[..., -(queries**2) :, -(keys**2) :], between)
        self.sums[name] = self.sums.get(name, 0) + heads.double().sum(0).cpu()
        self.counts[name] = self.counts.get(name, 0) + len(attention)
        self.uniform[name] = between.mean().item()


def _mean_distances(attention: Tensor, between: Tensor) -> Tensor:
    """Return mean distances [B, H], from attention [B, H, Q, K] and distances [Q, K]."""
    return ((attention * between).sum(-1) / attention.sum(-1)).mean(-1)


def grid_side(name: str, tokens: int) -> int:
    """Return the side of the square grid that a layer's tokens form after the class tokens."""
    side = math.isqrt(tokens)
    if tokens - side**2 > MAX_PREFIX_TOKENS:
        raise ValueError(
            f"{name}: {tokens} tokens are not a square grid after at most {MAX_PREFIX_TOKENS} other tokens"
        )
    return side


def _distances(queries: int, keys: int, image_size: int) -> Tensor:
    """Return the distances [queries^2, keys^2] in pixels between the cells' centres of two grids over the image."""

    def centres(side: int) -> Tensor:
        line = (torch.arange(side) + 0.5) * (image_size / side)
        return torch.cartesian_prod(line, line)

    return torch.cdist(centres(queries), centres(keys), compute_mode="donot_use_mm_for_euclid_dist")
