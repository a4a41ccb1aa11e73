"""Command line: `python -m lgfast.evaluate --checkpoint RUN_OR_FILE [--split test]`."""

from __future__ import annotations

import argparse
import dataclasses
import sys

from lgfast.checkpoint import CheckpointError, find_weights, load_weights, read_weights
from lgfast.config import from_dict
from lgfast.loop import evaluate
from lgfast.run import eval_loader, load_images, model_from_metadata, resolve_device


def evaluate_checkpoint(
    checkpoint: str, *, split: str = "test", root: str | None = None, device: str = "auto"
) -> dict[str, float]:
    """Top-1 and top-5 (percent) and mean cross entropy of a checkpoint on its own dataset.

    Args:
        checkpoint: run folder (its best epoch), checkpoint folder, or weights file.
        split: "test" or "train".
        root: folder of the dataset's files; None for where it was at training time.
    Raises:
        CheckpointError: missing or damaged file, or one whose classes differ from the dataset's.
    """
    path = find_weights(checkpoint)
    weights, metadata = read_weights(path)
    if "config" not in metadata:
        raise CheckpointError(f"{path} has no lgfast header; it was not written by lgfast")
    config = from_dict(metadata["config"])
    data = dataclasses.replace(config.data, root=root or config.data.root)
    config = dataclasses.replace(config, data=data)
    images = load_images(config, split)
    if len(metadata["class_names"]) != images.num_classes:
        raise CheckpointError(
            f"{path} was trained for {len(metadata['class_names'])} classes, {data.dataset} in {data.root} has "
            f"{images.num_classes}; pass --root with the data it was trained on"
        )
    target = resolve_device(device)
    model = model_from_metadata(metadata).to(target)
    load_weights(model, weights, path)
    return evaluate(model, eval_loader(config, images, target), target)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lgfast.evaluate", description="Test a checkpoint.")
    parser.add_argument("--checkpoint", required=True, help="run folder, checkpoint folder or .safetensors file")
    parser.add_argument("--split", default="test", choices=("test", "train"))
    parser.add_argument("--root", help="folder of the dataset, if it moved since training")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(argv)
    try:
        scores = evaluate_checkpoint(options.checkpoint, split=options.split, root=options.root, device=options.device)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"top-1 {scores['top1']:.2f} %   top-5 {scores['top5']:.2f} %   loss {scores['loss']:.4f}   "
        f"images {scores['images']}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
