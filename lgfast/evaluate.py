"""Command line: `python -m lgfast.evaluate RUN [--split test]`."""

from __future__ import annotations

import argparse
import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lgfast.assembly.device import resolve_device
from lgfast.assembly.images import SplitImages, load_images, load_splits
from lgfast.assembly.loaders import eval_loader
from lgfast.assembly.networks import Trained, load_trained
from lgfast.config import Config, replace
from lgfast.data.errors import some
from lgfast.data.sources.image_folder import is_flat
from lgfast.inference.folds import fold_folders
from lgfast.models.pycls_weights import Which, model_from_pycls, pycls_image_size, pycls_model_name
from lgfast.records.answers import Answers, write_answers
from lgfast.records.checkpoint import CheckpointError
from lgfast.records.run_config import FILE
from lgfast.reports.answers import FILES as ANSWER_FILES
from lgfast.reports.answers import TEST, write_answer_files
from lgfast.reports.run_page import write_run_page
from lgfast.reports.scores import Score
from lgfast.runtime.command_line import command_line
from lgfast.runtime.door import open_door
from lgfast.runtime.paths import user_path
from lgfast.training.evaluation import evaluate_logits


def evaluate_checkpoint(
    checkpoint: str,
    *,
    split: str = "test",
    dataset: str | None = None,
    root: str | None = None,
    device: str = "auto",
    weights: Which = "best",
) -> dict[str, float]:
    """Compute top-1, top-5, balanced accuracy and macro-F1 (percent) and mean cross entropy of a checkpoint.

    Args:
        checkpoint: run folder (its best epoch), checkpoint folder, weights file, or a `.pyth` of the paper's code.
        split: "test" or "train".
        dataset: None for the one it was trained on (cifar100 for a `.pyth`).
        root: folder of the dataset's files; None for where it was at training time.
        weights: which weights of a `.pyth` to take: "model", "ema" (their moving average), or "best", as the paper's
            test mode does.
    Raises:
        CheckpointError: the file is missing or damaged, its loss is not finite, or it does not know a class of the
            data set by its name (for a `.pyth`, which holds no names, the number of classes must fit).
    """
    return evaluate_trained(load_checkpoint(checkpoint, weights), checkpoint, split, dataset, root, device).scores


class Evaluation(NamedTuple):
    """The scores of a checkpoint, its answers, and the images that it answered for."""

    scores: dict[str, float]
    answers: Answers
    images: SplitImages


def evaluate_trained(
    trained: Trained, checkpoint: str, split: str, dataset: str | None, root: str | None, device: str
) -> Evaluation:
    """Evaluate a checkpoint that was read already, as `evaluate_checkpoint`."""
    changes = {"data.dataset": dataset, "data.root": root}
    config = replace(trained.config, {key: value for key, value in changes.items() if value is not None})
    try:
        images = load_images(config, split)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; where the images lie now is said with --root FOLDER") from error
    names = trained.class_names or images.class_names
    unknown = [name for name in images.class_names if name not in names]
    if unknown or len(names) != trained.num_classes:
        which = f" (not known: {some(unknown)})" if unknown else ""
        raise CheckpointError(
            f"{checkpoint} was trained for {trained.num_classes} classes, {config.data.dataset} in {config.data.root} "
            f"has {images.num_classes}{which}; pass --dataset and --root of the data it was trained on"
        )
    if split == "test":
        warn_of_new_split(config, trained)
    target = resolve_device(device)
    images = images.relabel(names)
    scores, logits, labels = evaluate_logits(trained.model.to(target), eval_loader(config, images, target), target)
    if not math.isfinite(scores["loss"]):
        raise CheckpointError(
            f"{checkpoint} gives a loss of {scores['loss']}: its training had diverged, or the file is damaged; use an "
            "older checkpoint or train again"
        )
    return Evaluation(scores, Answers.of(logits, labels, images, f"{config.data.dataset}, {split}"), images)


def warn_of_new_split(config: Config, trained: Trained) -> None:
    """Warn where the test part of class folders without parts may not be the one that was kept from training."""
    data = config.data
    if data.dataset != "folder" or not trained.content_hash or not is_flat(user_path(data.root)):
        return
    if load_splits(config).train.content_hash != trained.content_hash:
        warnings.warn(
            f"{data.root} does not hold the images of the training, or no longer those alone: some that are tested now "
            "may have been trained on, and only their share is tested; put new images into <root>/test/<class>",
            stacklevel=2,
        )


def load_checkpoint(checkpoint: str, weights: Which = "best") -> Trained:
    """Load a checkpoint; arguments as in `evaluate_checkpoint`."""
    if checkpoint.endswith(".pyth"):
        return load_pyth(user_path(checkpoint), weights)
    if weights != "best":
        raise ValueError(f"--weights: {weights} chooses between the weights in a .pyth file, which {checkpoint} is not")
    path = user_path(checkpoint)
    if fold_folders(path):
        raise ValueError(
            f"RUN: each image of the cross-validation {path} was trained on by some of its networks; their scores on "
            f"images that they did not see are in {path}/out-of-fold; or name one of them, {path}/fold-1"
        )
    return load_trained(path)


def load_pyth(path: Path, weights: Which = "best") -> Trained:
    """Load a checkpoint of the paper's code with the weights that its test mode judges."""
    model, checkpoint = model_from_pycls(path, weights)
    image_size = pycls_image_size(checkpoint.config, pycls_model_name(checkpoint.state))
    changes = {"data.dataset": "cifar100", "augment.image_size": image_size, "augment.teacher_size": 0}
    errors = f"test errors in the file: model {checkpoint.test_err:.2f} %, ema {checkpoint.ema_err:.2f} %"
    about = f"{checkpoint.weights}_state of {path} ({errors})"
    return Trained(model, checkpoint.num_classes, (), replace(Config(), changes | {"guidance.weight": 0}), about)


def command_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lgfast.evaluate", description="Test a checkpoint.")
    parser.add_argument(
        "run", metavar="RUN", nargs="?", help="run folder, checkpoint folder, .safetensors or .pyth file"
    )
    parser.add_argument("--checkpoint", metavar="RUN", help="the old name of RUN")
    parser.add_argument("--split", default="test", choices=("test", "train"))
    parser.add_argument("--dataset", help="another dataset than the one it was trained on")
    parser.add_argument("--root", help="folder of the dataset, if it moved since training")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--weights",
        default="best",
        choices=("best", "model", "ema"),
        help="of those in a .pyth file: as its test mode takes them (default), or one of the two",
    )
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        help=f"where to write what it gets wrong: {ANSWER_FILES} (default: RUN/SPLIT of a run folder on its own data)",
    )
    return parser


@command_line
def main(argv: Sequence[str] | None = None) -> int:
    options = command_parser().parse_args(argv)
    options.run = named_run(options)
    trained = load_checkpoint(options.run, options.weights)
    if trained.about:
        print(trained.about, flush=True)
    where = (options.split, options.dataset, options.root, options.device)
    scores, answers, images = evaluate_trained(trained, options.run, *where)
    top = f"top-1 {scores['top1']:.2f} %   top-5 {scores['top5']:.2f} %"
    print(f"{top}   loss {scores['loss']:.4f}   images {scores['images']}", flush=True)
    if folder := answer_folder(options):
        write_answers(folder, answers)
        print_scores(write_answer_files(answers, images, folder), folder)
        if folder == user_path(options.run) / TEST:  # the run's page shows this folder
            print(f"page: {write_run_page(folder.parent)}")
    return 0


def named_run(options: argparse.Namespace) -> str:
    """RUN, by position or by the name that it had."""
    if (options.run is None) == (options.checkpoint is None):
        raise ValueError(
            f"RUN: expected one run folder or weights file, got {'none' if options.run is None else 'two'}; "
            "lgfast evaluate RUN"
        )
    if options.run is None:
        print("--checkpoint is deprecated: lgfast evaluate RUN takes the run by position", file=sys.stderr)
    return options.run or options.checkpoint


def answer_folder(options: argparse.Namespace) -> Path | None:
    """Return the folder for the answers; None for other data than the run's own, unless --out names one."""
    if options.out:
        return user_path(options.out)
    run = user_path(options.run)
    is_own = options.dataset is None and options.root is None
    return run / options.split if is_own and (run / FILE).is_file() else None


def print_scores(scores: Mapping[str, Score], folder: Path) -> None:
    """Print values in percent with their intervals, and the folder of the rest."""
    names = {"map": "mean avg precision", "top1": "top-1", "top5": "top-5", "balanced_accuracy": "balanced accuracy"}
    names |= {"macro_f1": "macro-F1", "ece": "calibration error"}
    for name, title in ((name, title) for name, title in names.items() if name in scores):
        print(
            f"{title:20}{scores[name].value:6.2f} %   95 % interval {scores[name].low:.2f} to {scores[name].high:.2f}"
        )
    print(f"classes, confusion, mistakes and logits are in {folder}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
open_door(__name__)
