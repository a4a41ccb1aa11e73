"""Command line: `python -m lgfast.attention_distance runs/base runs/guided`: how far the heads of each layer look.

Mean attention distance (Dosovitskiy et al., 2021; Raghu et al., 2021): the distance in pixels of the input between a
patch and the patches it attends to, weighted by its attention to them, averaged over patches and images. Class tokens
are left out on both sides. Small: the head is local; `uniform`: what a head reads that looks everywhere alike.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lgfast.assembly.device import resolve_device
from lgfast.assembly.images import load_images
from lgfast.assembly.loaders import eval_loader
from lgfast.evaluate import load_checkpoint
from lgfast.fusion import unfuse
from lgfast.models.convit import PositionalAttention
from lgfast.reports.table import Table, write_csv
from lgfast.runtime.command_line import command_line

MAX_PREFIX_TOKENS = 5  # a class token and four registers; more could be patches


@dataclass(frozen=True)
class LayerDistance:
    """Of one attention module, in pixels: a mean for each head, and that of a head that looks everywhere alike."""

    heads: list[float]
    uniform: float

    @property
    def mean(self) -> float:
        return sum(self.heads) / len(self.heads)


@torch.no_grad()
def attention_distances(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, LayerDistance]:
    """Mean attention distance of every head, by the name of the attention module, in the order they run.

    Args:
        model: one whose attention goes through `scaled_dot_product_attention`, as that of timm's models and lgfast's
            does; its fused attention is undone, and it is left in eval mode.
        batches: float [B, 3, S, S] each, on the model's device.
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


@contextmanager
def _names_of(model: nn.Module) -> Iterator[list[tuple[str, nn.Module]]]:
    """The modules that are running, outermost first."""
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


class _Recorder(TorchFunctionMode):
    """Sums up the distances of every attention that runs under it."""

    def __init__(self) -> None:
        super().__init__()
        self.image_size = self.num_batches = 0
        self.running: list[tuple[str, nn.Module]] = []
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.uniform: dict[str, float] = {}

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is F.scaled_dot_product_attention:
            with torch._C.DisableTorchFunction():
                self.record(*args[:2], **kwargs or {})
        return func(*args, **kwargs or {})

    def record(self, q: Tensor, k: Tensor, scale: float | None = None, **_: Any) -> None:
        name, module = self.running[-1]
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        attention = (scale * q.float() @ k.float().transpose(-2, -1)).softmax(-1)
        if isinstance(module, PositionalAttention):
            gate = torch.sigmoid(-module.gating_param.float())[:, None, None]
            attention = gate * attention + module.position_weights().float()
        queries, keys = (_grid(name, tokens.shape[-2]) for tokens in (q, k))
        between = _distances(queries, keys, self.image_size).to(q.device)
        heads = _mean_distances(attention[..., -(queries**2) :, -(keys**2) :], between)
        self.sums[name] = self.sums.get(name, 0) + heads.double().sum(0).cpu()
        self.counts[name] = self.counts.get(name, 0) + len(q)
        self.uniform[name] = between.mean().item()


def _mean_distances(attention: Tensor, between: Tensor) -> Tensor:
    """[B, H] of attention [B, H, Q, K] and distances [Q, K]."""
    return ((attention * between).sum(-1) / attention.sum(-1)).mean(-1)


def _grid(name: str, tokens: int) -> int:
    """Side of the square grid of a layer's tokens; class tokens come before it."""
    side = math.isqrt(tokens)
    if tokens - side**2 > MAX_PREFIX_TOKENS:
        raise ValueError(
            f"{name}: {tokens} tokens are not a square grid after at most {MAX_PREFIX_TOKENS} other tokens"
        )
    return side


def _distances(queries: int, keys: int, image_size: int) -> Tensor:
    """Between the centres of the cells of two grids over the image: [queries^2, keys^2], in pixels."""

    def centres(side: int) -> Tensor:
        line = (torch.arange(side) + 0.5) * (image_size / side)
        return torch.cartesian_prod(line, line)

    return torch.cdist(centres(queries), centres(keys), compute_mode="donot_use_mm_for_euclid_dist")


def checkpoint_distances(
    checkpoint: str, num_images: int, split: str = "test", device: str = "auto"
) -> dict[str, LayerDistance]:
    """`attention_distances` of a run or weights file on the first images of the data it was trained on."""
    trained, target = load_checkpoint(checkpoint), resolve_device(device)
    loader = eval_loader(trained.config, load_images(trained.config, split), target)
    batches = islice(loader, math.ceil(num_images / loader.batch_size))
    return attention_distances(trained.model.to(target), (batch.images for batch in batches))


def table(found: dict[str, dict[str, LayerDistance]]) -> Table:
    """Layers down, checkpoints across: mean over heads, smallest and largest head."""
    layers = dict.fromkeys(name for distances in found.values() for name in distances)
    rows = []
    for name in layers:
        cells = [distances.get(name) for distances in found.values()]
        uniform = next(cell.uniform for cell in cells if cell is not None)
        shown = ("-" if c is None else f"{c.mean:.1f} ({min(c.heads):.1f} to {max(c.heads):.1f})" for c in cells)
        rows.append([name, f"{uniform:.1f}", *shown])
    return Table(["layer", "uniform", *found], rows)


def by_head(found: dict[str, dict[str, LayerDistance]]) -> list[dict[str, Any]]:
    """One row for each checkpoint, layer and head."""
    return [
        {
            "checkpoint": checkpoint,
            "layer": layer,
            "head": head,
            "distance_pixels": distance,
            "uniform_pixels": one.uniform,
        }
        for checkpoint, distances in found.items()
        for layer, one in distances.items()
        for head, distance in enumerate(one.heads)
    ]


@command_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lgfast.attention_distance",
        description="Mean attention distance of every layer, in pixels of the input: mean over heads, and their range.",
    )
    parser.add_argument("checkpoints", nargs="+", help="run folders (their best epochs), weights files or .pyth files")
    parser.add_argument("--images", type=int, default=200, help="rounded up to whole batches; default 200")
    parser.add_argument("--split", default="test", choices=("test", "train"))
    parser.add_argument("--csv", type=Path, help="also write every head's distance to this file")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(argv)
    if options.images < 1:
        parser.error(f"--images: expected at least 1, got {options.images}")
    found = {
        checkpoint: checkpoint_distances(checkpoint, options.images, options.split, options.device)
        for checkpoint in options.checkpoints
    }
    print("\n".join(table(found).lines()))
    if options.csv:
        write_csv(options.csv, by_head(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
