"""Command line: `python -m lgfast.export RUN --format onnx [--out FILE]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from lgfast.inference import exporting
from lgfast.inference.classifier import Classifier
from lgfast.inference.folds import MeanNetwork, load_one_or_folds
from lgfast.inference.model_card import model_card
from lgfast.runtime.command_line import command_line
from lgfast.runtime.door import open_door
from lgfast.runtime.paths import user_path

DESCRIPTION = "Write a trained network as a file for other programs."
SUFFIXES = {"safetensors": ".safetensors", "torch": ".pt2", "onnx": ".onnx", "hf": "-hf"}


def export(source: Path, kind: str, out: Path) -> None:
    """Write the network of a run folder or weights file.

    Args:
        source: run folder (its best epoch), the folder of a cross-validation (the mean of its networks, as "torch" or
            "onnx") or .safetensors file.
        kind: "safetensors", "torch" (a torch.export program), "onnx", or "hf" (a folder for the Hugging Face hub).
        out: the file, or the folder of "hf", to write.
    Raises:
        CheckpointError: there is no network at `source`.
        ValueError: a package is missing, the exported file computes something else, or the format holds one network.
    """
    trained = load_one_or_folds(source)
    if isinstance(trained.model, MeanNetwork) and kind in ("safetensors", "hf"):
        raise ValueError(f"--format {kind}: holds one network, {source} has several; use onnx, or name {source}/fold-1")
    classifier = Classifier(trained.model, trained.class_names, trained.config, torch.device("cpu"))
    out.parent.mkdir(parents=True, exist_ok=True)
    if kind == "hf":
        exporting.export_hub_folder(trained.model, classifier, out, model_card(classifier, source))
        return
    writers = {
        "safetensors": exporting.export_safetensors,
        "torch": exporting.export_torch,
        "onnx": exporting.export_onnx,
    }
    writers[kind](trained.model, classifier, out)


def command_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lgfast.export", description=DESCRIPTION)
    parser.add_argument("run", metavar="RUN", help="run folder (its best epoch), folder of folds, or .safetensors")
    parser.add_argument(
        "--format",
        choices=tuple(SUFFIXES),
        default="onnx",
        help="safetensors and hf: for timm; torch: a torch.export program; onnx: checked against onnxruntime",
    )
    parser.add_argument("--out", help="file or folder to write (default: beside the run's files)")
    return parser


@command_line
def main(argv: Sequence[str] | None = None) -> int:
    options = command_parser().parse_args(argv)
    source = user_path(options.run)
    folder = source if source.is_dir() else source.parent
    out = user_path(options.out) if options.out else folder / f"model{SUFFIXES[options.format]}"
    export(source, options.format, out)
    print(f"{out}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
open_door(__name__)
