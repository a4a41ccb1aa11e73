"""Puts a run together: images, teacher, student, step, loop, and the final test."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lgfast.checkpoint import CheckpointError, atomic_path, find_weights, load_weights, read_weights
from lgfast.config import Config, digest, dump_yaml, from_dict, load_recipe, load_yaml, replace, to_dict
from lgfast.data import ImageSet, build_eval_loader, build_train_loader, load_dataset, split_holdout
from lgfast.data.epoch_loader import EpochLoader
from lgfast.data.eval_loader import EvalLoader
from lgfast.environment import describe_environment
from lgfast.guidance import GuidedStudent, Teacher
from lgfast.interrupt import InterruptFlag
from lgfast.locks import file_lock
from lgfast.loop import Trainer, evaluate
from lgfast.metrics import TrainMeter
from lgfast.models import create_model
from lgfast.models.taps import default_layers
from lgfast.optim import build_optimizer
from lgfast.step import TrainStep

HOLDOUT_SEED = 0  # one split for every run on the same images, whatever the run's own seed


@dataclass(frozen=True)
class Result:
    """What a finished run reports. Accuracies in percent on the test images."""

    run_dir: str
    test_top1: float  # of the selected (best) epoch
    test_top5: float
    last_test_top1: float  # of the last epoch
    best_epoch: int
    selected_on: str  # "validation" or "test" (eval.protocol=paper)
    val_top1: float  # on the selection images, at the best epoch
    seconds: float
    teacher_run: str | None = None
    teacher_test_top1: float | None = None


@dataclass(frozen=True)
class Loaders:
    """Batches to train on and batches that select the best epoch; students of one group share them."""

    train: EpochLoader
    select: EvalLoader


@dataclass(frozen=True)
class DataSplits:
    """Images to train on, to select the best epoch on, and to report on."""

    train: ImageSet
    select: ImageSet
    test: ImageSet


def resolve_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: {name} was asked for, but torch sees no CUDA device; use --device cpu")
    return device


def load_images(config: Config, split: str) -> ImageSet:
    """One split of the dataset, cut to the configured number of images."""
    data = config.data
    images = load_dataset(data.dataset, data.root, split, download=data.download, skip_broken=data.skip_broken)
    limit = data.train_limit if split == "train" else data.test_limit
    return images.limit(limit) if 0 < limit < len(images) else images


def load_splits(config: Config) -> DataSplits:
    train, test = load_images(config, "train"), load_images(config, "test")
    if config.eval.protocol == "paper":
        return DataSplits(train, test, test)
    train, select = split_holdout(train, config.eval.holdout_fraction, HOLDOUT_SEED)
    return DataSplits(train, select, test)


def train_run(config: Config, resume: bool = False, interrupt: InterruptFlag | None = None) -> Result:
    """Train as `config` says (its teacher first, if it needs one) and test the result.

    Args:
        resume: continue from the newest checkpoint of `config.run_dir` (start anew where there is none).
    """
    interrupt = interrupt or InterruptFlag()
    started = time.perf_counter()
    device = resolve_device(config.device)
    splits = load_splits(config)
    teacher, teacher_run = None, None
    if config.guidance.weight > 0:
        teacher_run = teacher_source(config, splits, interrupt)
        teacher = load_teacher(config, teacher_run, splits.train, device)
    run_dir = open_run_dir(config, resume)
    trainer = build_trainer(dataclasses.replace(config, run_dir=str(run_dir)), splits, teacher, device, interrupt)
    if resume and trainer.resume():
        print(f"continuing {run_dir} after step {trainer.progress.step}", flush=True)
    trainer.fit()
    result = report(config, run_dir, trainer, splits, device, teacher_run, time.perf_counter() - started)
    return result


def open_run_dir(config: Config, resume: bool) -> Path:
    """Create the run's folder with its configuration and environment; refuse one that holds another run."""
    run_dir = Path(config.run_dir or f"runs/{config.name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
    if not resume and (run_dir / "config.yaml").exists():
        raise ValueError(
            f"run_dir: {run_dir} already holds a run; continue it with --resume {run_dir}, or name another"
        )
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(dump_yaml(dataclasses.replace(config, run_dir=str(run_dir))))
    (run_dir / "environment.json").write_text(json.dumps(describe_environment(), indent=2) + "\n")
    return run_dir


def build_trainer(
    config: Config,
    splits: DataSplits,
    teacher: Teacher | None,
    device: torch.device,
    interrupt: InterruptFlag,
    loaders: Loaders | None = None,
) -> Trainer:
    """The trainer of one run; the model's initial weights depend on `config.seed` alone.

    Args:
        teacher: None where the run is not guided.
        loaders: shared with other trainers; None to build the run's own.
    """
    loaders = loaders or build_loaders(config, splits, device)
    torch.manual_seed(config.seed)
    student = build_student(config, splits.train.num_classes, teacher).to(device)
    optimizer = build_optimizer(student.named_parameters(), config.optim)
    step = TrainStep(
        student,
        teacher,
        optimizer,
        TrainMeter(device),
        guidance_weight=config.guidance.weight,
        precision=config.precision,
        label_smoothing=config.optim.label_smoothing,
        clip_norm=config.optim.clip_norm,
    )
    metadata = weights_metadata(config, splits.train)
    run_dir = Path(config.run_dir)
    return Trainer(config, run_dir, student, step, loaders.train, loaders.select, metadata, interrupt)


def build_loaders(config: Config, splits: DataSplits, device: torch.device) -> Loaders:
    """The loaders of a run, or of a group of runs that share views. The teacher's input is made if it is needed."""
    data, is_guided = config.data, config.guidance.weight > 0
    train = build_train_loader(
        data.loader,
        splits.train,
        config.augment if is_guided else dataclasses.replace(config.augment, teacher_size=0),
        batch_size=data.batch_size,
        seed=config.view_seed,
        workers=data.workers,
        device=device,
    )
    if len(train) == 0:
        raise ValueError(
            f"data.batch_size: {data.batch_size} is more than the {len(splits.train)} training images; lower it"
        )
    return Loaders(train, eval_loader(config, splits.select, device))


def build_student(config: Config, num_classes: int, teacher: Teacher | None) -> GuidedStudent:
    model_config, image_size = config.model, config.augment.image_size
    model = create_model(
        model_config.name,
        num_classes=num_classes,
        image_size=image_size,
        drop_path_rate=model_config.drop_path_rate,
        **model_config.shape_overrides(),
    )
    if teacher is None:
        return GuidedStudent(model)
    layers = config.guidance.student_layers or default_layers(model)
    return GuidedStudent(model, layers, teacher.channels(config.augment.teacher_size), image_size)


def eval_loader(config: Config, images: ImageSet, device: torch.device) -> Any:
    return build_eval_loader(
        images, config.augment, batch_size=config.data.eval_batch_size, workers=config.data.workers, device=device
    )


def weights_metadata(config: Config, images: ImageSet) -> dict[str, Any]:
    """What a weights file says of itself: enough to rebuild the model and to refuse other data."""
    return {
        "config": to_dict(config),
        "class_names": list(images.class_names),
        "content_hash": images.content_hash,
    }


def report(
    config: Config,
    run_dir: Path,
    trainer: Trainer,
    splits: DataSplits,
    device: torch.device,
    teacher_run: Path | None,
    seconds: float,
) -> Result:
    """Test the last and the selected weights, once each, and write result.json."""
    model, loader = trainer.student.model, eval_loader(config, splits.test, device)
    last = evaluate(model, loader, device)
    best_path = run_dir / "best.safetensors"
    load_weights(model, read_weights(best_path)[0], best_path)
    best = evaluate(model, loader, device)
    result = Result(
        run_dir=str(run_dir),
        test_top1=best["top1"],
        test_top5=best["top5"],
        last_test_top1=last["top1"],
        best_epoch=trainer.progress.best_epoch,
        selected_on="test" if config.eval.protocol == "paper" else "validation",
        val_top1=trainer.progress.best_top1,
        seconds=seconds,
        teacher_run=str(teacher_run) if teacher_run else None,
        teacher_test_top1=teacher_test_top1(teacher_run),
    )
    with atomic_path(run_dir / "result.json") as temporary:
        temporary.write_text(json.dumps(dataclasses.asdict(result), indent=2) + "\n")
    return result


def read_result(run_dir: Path | str) -> Result | None:
    """The result of a finished run, or None."""
    path = Path(run_dir) / "result.json"
    return Result(**json.loads(path.read_text())) if path.is_file() else None


# ---- the teacher -----------------------------------------------------------------------------------------------------


def teacher_source(config: Config, splits: DataSplits, interrupt: InterruptFlag) -> Path:
    """Run folder or weights file of the teacher; `auto` trains it once per (images, recipe) and keeps it."""
    if config.teacher.checkpoint != "auto":
        return Path(config.teacher.checkpoint)
    teacher = teacher_config(config)
    run_dir = teacher_cache(config) / f"{teacher.name}-{teacher_digest(teacher, splits.train)}"
    run_dir.mkdir(parents=True, exist_ok=True)
    with file_lock(run_dir / "lock"):
        if read_result(run_dir) is None:
            print(f"training the teacher ({teacher.name}) once; it is kept in {run_dir}", flush=True)
            train_run(dataclasses.replace(teacher, run_dir=str(run_dir)), resume=True, interrupt=interrupt)
    return run_dir


def teacher_config(config: Config) -> Config:
    """The teacher's recipe on the student's images, at the teacher's input size."""
    teacher = load_recipe(config.teacher.recipe)
    if teacher.guidance.weight > 0:
        raise ValueError(f"teacher.recipe: {config.teacher.recipe} is itself guided; name a recipe of a plain CNN")
    augment = dataclasses.replace(teacher.augment, image_size=config.augment.teacher_size, teacher_size=0)
    data = dataclasses.replace(config.data, batch_size=teacher.data.batch_size, seed=teacher.data.seed)
    log = dataclasses.replace(teacher.log, tensorboard=config.log.tensorboard)
    return dataclasses.replace(
        teacher, device=config.device, data=data, augment=augment, eval=config.eval, log=log, run_dir=""
    )


def teacher_cache(config: Config) -> Path:
    home = config.teacher.cache or os.environ.get("LGFAST_CACHE") or Path.home() / ".cache" / "lgfast"
    return Path(home) / "teachers"


def teacher_digest(teacher: Config, images: ImageSet) -> str:
    """Hash of what decides the teacher's weights: the images and the recipe, not where they lie or who runs it."""
    tree = to_dict(teacher)
    for name in ("root", "download", "loader", "workers", "eval_batch_size"):
        del tree["data"][name]
    for name in ("name", "device", "run_dir", "log", "teacher"):
        del tree[name]
    return digest([tree, images.content_hash])


def load_teacher(config: Config, source: Path, images: ImageSet, device: torch.device) -> Teacher:
    """The trained CNN; an error if it was trained for other classes."""
    weights, metadata = read_weights(find_weights(source))
    if "config" not in metadata:
        raise CheckpointError(
            f"teacher.checkpoint: {source} has no lgfast header; train one with python -m lgfast.train"
        )
    if metadata["class_names"] != list(images.class_names):
        raise CheckpointError(
            f"teacher.checkpoint: {source} was trained for {len(metadata['class_names'])} classes "
            f"({', '.join(metadata['class_names'][:3])}, ...), the dataset has {images.num_classes} "
            f"({', '.join(images.class_names[:3])}, ...); use teacher.checkpoint=auto"
        )
    model = model_from_metadata(metadata)
    load_weights(model, weights, source)
    stages = config.teacher.stages or (0, 1, 2)
    return Teacher(model.to(device), stages, config.teacher.bn)


def model_from_metadata(metadata: dict[str, Any]) -> torch.nn.Module:
    """The network that a weights file belongs to, freshly initialised."""
    config = from_dict(metadata["config"])
    return build_student(config, len(metadata["class_names"]), None).model


def teacher_test_top1(teacher_run: Path | None) -> float | None:
    result = read_result(teacher_run) if teacher_run else None
    return result.test_top1 if result else None


# ---- resume ----------------------------------------------------------------------------------------------------------

# Keys that may differ when a run is continued: they do not change what is computed.
FREE_ON_RESUME = ("device", "run_dir", "name", "data.root", "data.workers", "data.download", "log.", "teacher.cache")


def resume_config(run_dir: Path | str, changes: dict[str, Any]) -> Config:
    """The configuration of the run in `run_dir`; changing what the run computes is refused."""
    path = Path(run_dir) / "config.yaml"
    if not path.is_file():
        raise ValueError(f"--resume: {run_dir} is not a run folder (no config.yaml)")
    config = dataclasses.replace(load_yaml(path), run_dir=str(run_dir))
    for key, value in changes.items():
        if not key.startswith(FREE_ON_RESUME) and replace(config, {key: value}) != config:
            raise ValueError(
                f"--resume: {key} cannot change in a resumed run ({run_dir} was started with another value); "
                "start a new run instead"
            )
    return replace(config, changes)
