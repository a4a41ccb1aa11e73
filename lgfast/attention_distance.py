"""Command line: `python -m lgfast.attention_distance runs/base runs/guided`: how far the heads of each layer look.

Mean attention distance (Dosovitskiy et al., 2021; Raghu et al., 2021): the distance in pixels of the input between a
patch and the patches it attends to, weighted by its attention to them, averaged over patches and images. Class tokens
are left out on both sides. Small: the head is local; `uniform`: what a head reads that looks everywhere alike.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from lgfast.assembly.device import resolve_device
from lgfast.assembly.images import load_images
from lgfast.assembly.loaders import eval_loader
from lgfast.evaluate import load_checkpoint
from lgfast.inference.attention import LayerDistance, attention_distances
from lgfast.reports.table import Table, write_csv
from lgfast.runtime.command_line import command_line


def checkpoint_distances(
    checkpoint: str, num_images: int, split: str = "test", device: str = "auto"
) -> dict[str, LayerDistance]:
    """Return `attention_distances` of a run or weights file, on the first images of its training data."""
    trained, target = load_checkpoint(checkpoint), resolve_device(device)
    loader = eval_loader(trained.config, load_images(trained.config, split), target)
    batches = islice(loader, math.ceil(num_images / loader.batch_size))
    return attention_distances(trained.model.to(target), (batch.images for batch in batches))


def table(found: dict[str, dict[str, LayerDistance]]) -> Table:
    """Make a table of layers by checkpoints: mean over heads, smallest and largest head."""
    layers = dict.fromkeys(name for distances in found.values() for name in distances)
    rows = []
    for name in layers:
        cells = [distances.get(name) for distances in found.values()]
        uniform = next(cell.uniform for cell in cells if cell is not None)
        shown = ("-" if c is None else f"{c.mean:.1f} ({min(c.heads):.1f} to {max(c.heads):.1f})" for c in cells)
        rows.append([name, f"{uniform:.1f}", *shown])
    return Table(["layer", "uniform", *found], rows)


def by_head(found: dict[str, dict[str, LayerDistance]]) -> list[dict[str, Any]]:
    """Return a row for each checkpoint, layer and head."""
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


def command_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lgfast.attention_distance",
        description="Mean attention distance of every layer, in pixels of the input: mean over heads, and their range.",
    )
    parser.add_argument("checkpoints", nargs="+", help="run folders (their best epochs), weights files or .pyth files")
    parser.add_argument("--images", type=int, default=200, help="rounded up to whole batches; default 200")
    parser.add_argument("--split", default="test", choices=("test", "train"))
    parser.add_argument("--csv", type=Path, help="also write every head's distance to this file")
    parser.add_argument("--device", default="auto")
    return parser


@command_line
def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser()
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
