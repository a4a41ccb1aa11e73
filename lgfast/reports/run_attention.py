"""Measure how far the heads of a run's network look, beside those of its initial network."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from lgfast.assembly.images import SplitImages
from lgfast.assembly.initial import start_model
from lgfast.assembly.loaders import eval_loader
from lgfast.assembly.networks import build_student, load_trained
from lgfast.inference.attention import LayerDistance, attention_distances
from lgfast.reports.table import write_csv

FILE = "attention.csv"


def measure_attention(run_dir: Path, images: SplitImages) -> dict[str, dict[str, LayerDistance]]:
    """Return the mean attention distances on test images, of the trained network and of the initial one.

    Raises:
        ValueError: the network has no attention that can be read, or its tokens are no square.
    """
    trained = load_trained(run_dir)
    device = torch.device("cpu")
    batches = [batch.images for batch in eval_loader(trained.config, images, device)]
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(trained.config.seed)  # the initial weights, as lgfast.assembly.lanes makes them
        initial = build_student(trained.config, trained.num_classes, None).model
    start_model(initial, trained.config, trained.class_names)
    models = {"trained": trained.model, "before training": initial}
    return {name: attention_distances(model, batches) for name, model in models.items()}


def write_attention(found: dict[str, dict[str, LayerDistance]], path: Path) -> None:
    """Write a row for each network, layer and head."""
    rows: list[dict[str, Any]] = [
        {"network": network, "layer": layer, "head": head, "distance_pixels": value, "uniform_pixels": one.uniform}
        for network, distances in found.items()
        for layer, one in distances.items()
        for head, value in enumerate(one.heads)
    ]
    write_csv(path, rows)


def read_attention(path: Path) -> dict[str, dict[str, LayerDistance]]:
    """Read what `write_attention` wrote; return nothing where there is no such file."""
    if not path.is_file():
        return {}
    heads: dict[tuple[str, str], list[float]] = defaultdict(list)
    uniform: dict[tuple[str, str], float] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            key = row["network"], row["layer"]
            heads[key].append(float(row["distance_pixels"]))
            uniform[key] = float(row["uniform_pixels"])
    found: dict[str, dict[str, LayerDistance]] = defaultdict(dict)
    for (network, layer), values in heads.items():
        found[network][layer] = LayerDistance(values, uniform[network, layer])
    return dict(found)
