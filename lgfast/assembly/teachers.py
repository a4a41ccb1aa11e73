"""Provide the teacher of a guided run: trained once for the same images and kept, or read from a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lgfast.assembly.device import resolve_precision
from lgfast.assembly.images import SplitImages, stored_side
from lgfast.assembly.loaders import train_loader
from lgfast.assembly.networks import build_model, build_trained_part, load_trained, refusing_single_values
from lgfast.config import Config, digest, load_recipe, to_dict
from lgfast.data.image_set import LabelledImages
from lgfast.guidance import Teacher
from lgfast.models.pycls_weights import model_from_pycls
from lgfast.models.stages import teacher_stages
from lgfast.models.taps import architecture, zero_image
from lgfast.records.checkpoint import CheckpointError
from lgfast.records.files import WriteError
from lgfast.runtime import ranks
from lgfast.runtime.interrupt import Interrupted, InterruptFlag
from lgfast.runtime.locks import Waiting, file_lock
from lgfast.runtime.paths import cache_home, user_path
from lgfast.runtime.shared_files import StrangerError, check_owner, owners

# section -> the keys that the first version hashed teachers by
FIRST_KEYS = {
    "config": ("epochs", "max_steps", "seed", "precision"),
    "data": ("dataset", "skip_broken", "seed", "views", "batch_size", "train_limit", "test_limit"),
    "augment": (
        "image_size", "teacher_size", "crop_scale", "crop_ratio", "interpolation", "flip_prob", "rand_augment",
        "erase_prob", "erase_mode", "mean", "std", "weak", "mixup_alpha", "cutmix_alpha",
    ),
    "model": ("name", "drop_path_rate", "patch_size", "embed_dim", "depth", "num_heads", "attention"),
    "guidance": ("weight", "student_layers", "transform"),
    "optim": (
        "name", "lr", "min_lr", "weight_decay", "momentum", "warmup_epochs", "warmup_factor", "per_step",
        "label_smoothing", "clip_norm",
    ),
    "step": ("graph", "streams", "compile", "fused_layers", "accumulate", "ema_decay"),
    "eval": ("protocol", "holdout_fraction", "every_epochs"),
}  # fmt: skip
# keys that the hash of the images covers
IN_THE_IMAGES = (
    "exif_orientation", "stored_side", "test_fraction", "max_pixels", "group", "folds", "fold", "labels",
    "label_separator", "pixels",
)  # fmt: skip
ANY_TIME = "the same command waits for it again, or uses it"
SAME_COMMAND = "continue with the same command: the teacher goes on where it stands, then the student begins"


def teacher_source(
    config: Config, images: SplitImages, train: Callable[[Config], object], interrupt: InterruptFlag
) -> Path:
    """Return the teacher's run folder or weights file. `auto` trains it once for each (images, recipe) and keeps it.

    Args:
        images: the training images.
        train: trains a configuration to its end, or resumes it, in its `run_dir`.
        interrupt: also ends the wait for another process that trains the teacher.
    """
    if config.teacher.checkpoint != "auto":
        return user_path(config.teacher.checkpoint)
    teacher, run_dir = teacher_config(config), teacher_folder(config, images)
    if not (run_dir / "result.json").exists():
        check_student(config, images)
    run_dir.mkdir(parents=True, exist_ok=True)
    refuse_strangers(run_dir, owners(cache_folder(config)))
    with file_lock(run_dir / "lock", WaitingForTeacher(run_dir, interrupt)):
        if not (run_dir / "result.json").exists():
            print(f"training the teacher ({teacher.name}) once; it is kept in {run_dir}", flush=True)
            try:
                train(dataclasses.replace(teacher, run_dir=str(run_dir)))
            except Interrupted as stop:
                raise Interrupted(stop.fact, SAME_COMMAND) from None
            except WriteError as error:
                raise WriteError(error.fact, f"make room for it, then {SAME_COMMAND}") from error
            except ValueError as error:
                raise ValueError(f"teacher.recipe: {config.teacher.recipe} cannot be trained: {error}") from error
    return run_dir


def check_student(config: Config, images: SplitImages) -> None:
    """Raise a ValueError for a student that cannot be trained, before its teacher is trained.

    Build its network and taps with an untrained teacher, its optimizer, and the loader of its batches.
    """
    cpu = torch.device("cpu")
    config = dataclasses.replace(config, precision="fp32", step=dataclasses.replace(config.step, compile="off"))
    with torch.random.fork_rng(devices=()):
        untrained = as_teacher(config, build_model(teacher_config(config), images.num_classes))
        build_trained_part(config, images, untrained, cpu)
    train_loader(config, images, cpu)


class WaitingForTeacher(Waiting):
    """Waits for another process that trains the teacher, and looks at signals.

    Args:
        run_dir: the teacher's folder.
        interrupt: ends the wait.
    """

    def __init__(self, run_dir: Path, interrupt: InterruptFlag) -> None:
        super().__init__(f"trains the teacher in {run_dir}")
        self.run_dir, self.interrupt = run_dir, interrupt

    def __call__(self) -> None:
        if self.interrupt.requested:
            raise Interrupted(f"stopped while another process trains the teacher in {self.run_dir}", ANY_TIME)
        super().__call__()


def refuse_strangers(run_dir: Path, trusted: Collection[int]) -> None:
    """Raise a ValueError where a user who is not trusted made a part of a kept teacher."""
    for path in (run_dir, *run_dir.iterdir()):
        try:
            check_owner(path, trusted)
        except StrangerError as error:
            raise ValueError(
                f"teacher.cache: {path} is not used: {error}; remove it, or set teacher.cache (or LGFAST_CACHE) to a "
                "folder of your own"
            ) from error


def teacher_config(config: Config) -> Config:
    """Return the teacher's configuration: its recipe on the student's images, at the teacher's input size.

    Where its number of epochs follows from the number of images, it is the student's.
    """
    try:
        teacher = load_recipe(config.teacher.recipe)
    except ValueError as error:
        raise ValueError(f"teacher.recipe: {error}") from None
    if teacher.needs_teacher:
        raise ValueError(f"teacher.recipe: {config.teacher.recipe} itself has a teacher; name a recipe of a plain CNN")
    model = dataclasses.replace(teacher.model, name=config.teacher.name or teacher.model.name)
    augment = dataclasses.replace(teacher.augment, image_size=config.augment.teacher_size, teacher_size=0)
    if not config.data.is_rgb:  # the teacher gets what was measured on the student's images
        seen = {name: getattr(config.augment, name) for name in ("mean", "std", "value_range")}
        augment = dataclasses.replace(augment, **seen)
    own = {name: getattr(teacher.data, name) for name in ("batch_size", "seed", "views")}
    data = dataclasses.replace(config.data, **own, stored_side=stored_side(config))
    log = dataclasses.replace(teacher.log, tensorboard=config.log.tensorboard)
    if teacher.epochs == 0:
        teacher = dataclasses.replace(teacher, epochs=config.epochs)
    if teacher.precision == "auto":  # then it takes the student's
        teacher = dataclasses.replace(teacher, precision=resolve_precision(config).precision)
    return dataclasses.replace(
        teacher, device=config.device, data=data, model=model, augment=augment, eval=config.eval, log=log, run_dir=""
    )


def teacher_folder(config: Config, images: LabelledImages) -> Path:
    """Return the folder of the teacher that `auto` trains on these images."""
    teacher = teacher_config(config)
    return teacher_cache(config) / f"{teacher.name}-{teacher_digest(teacher, images)}"


def teacher_cache(config: Config) -> Path:
    return cache_folder(config) / "teachers"


def cache_folder(config: Config) -> Path:
    """Return the folder of what is computed once for many runs."""
    return user_path(config.teacher.cache) if config.teacher.cache else cache_home()


def teacher_digest(teacher: Config, images: LabelledImages) -> str:
    """Hash what decides the teacher's weights: the images and the recipe, not their folders or the machine.

    A key that is newer than kept teachers counts only where it is set, so that older teachers are found.
    """
    tree, usual = to_dict(teacher), to_dict(Config())
    for name in ("name", "device", "run_dir", "log", "teacher", "distill"):
        del tree[name]
    for name in ("root", "download", "loader", "workers", "eval_batch_size", *IN_THE_IMAGES):
        del tree["data"][name]
    drop_usual(tree, usual, FIRST_KEYS["config"] + tuple(FIRST_KEYS))
    for section in set(tree) & set(FIRST_KEYS):
        drop_usual(tree[section], usual[section], FIRST_KEYS[section])
    tree["step"]["fused_layers"] = "off"  # the first version's default; a CNN has no layers to fuse
    return digest([tree, images.content_hash])


def drop_usual(node: dict[str, Any], usual: dict[str, Any], first: Sequence[str]) -> None:
    """Remove the keys of `node` that have their default value, apart from those in `first`."""
    for name in [name for name, value in node.items() if name not in first and value == usual[name]]:
        del node[name]


def load_teacher(config: Config, source: Path, images: LabelledImages, device: torch.device) -> Teacher:
    """Load the trained CNN, frozen; raise an error if it was trained for other classes.

    Args:
        source: a run folder, `.safetensors` file, or `.pyth` file of the paper's code.
        images: the training images, whose classes must be the teacher's.
    """
    read = read_pyth_teacher if source.suffix == ".pyth" else read_own_teacher
    try:
        model = read(source, images)
    except (ValueError, OSError) as error:
        raise CheckpointError(f"teacher.checkpoint: {error}") from error
    found, wanted = architecture(model), config.teacher.name
    if wanted and config.teacher.checkpoint != "auto" and found != wanted:
        raise CheckpointError(
            f"teacher.checkpoint: {source} holds {found}, and teacher.name asks for {wanted}; drop one"
        )
    if (channels := getattr(model, "in_chans", 3)) != config.channels:
        raise CheckpointError(
            f"teacher.checkpoint: {source} takes images of {channels} channels, these have {config.channels}; use "
            "teacher.checkpoint=auto"
        )
    return as_teacher(config, model.to(device))


def as_teacher(config: Config, model: nn.Module) -> Teacher:
    """Wrap a CNN as the teacher that a configuration asks for."""
    stages = choose_stages(config, model)
    is_offline = config.teacher.targets == "offline"  # stored outputs are computed once for all runs, in full precision
    teacher = Teacher(
        model,
        stages,
        config.teacher.bn,
        dtype=torch.bfloat16 if config.precision == "bf16" and not is_offline else None,
        autocast=torch.float16 if config.precision == "fp16-amp" and not is_offline else None,
        concurrent=config.step.streams == "on",
        gives_logits=config.distill.mode != "none",
        compiled=config.step.compile == "on" and not is_offline,
    )
    if config.data.batch_size // ranks.world() == 1:
        with refusing_single_values(architecture(model), "use 2 or more, or teacher.bn=running"):
            teacher.outputs(zero_image(model, config.augment.teacher_size))
    return teacher


def choose_stages(config: Config, model: nn.Module) -> tuple[int, ...]:
    """Return the stages to imitate: those of the configuration, else the model's default three."""
    stages = config.teacher.stages
    if not stages:
        return teacher_stages(model, config.augment.teacher_size)[0]
    count = len(model.feature_info)
    outside = [stage for stage in stages if not -count <= stage < count]
    if outside:
        raise ValueError(f"teacher.stages: a stage must lie in [{-count}, {count - 1}], got {outside[0]}")
    return stages


def read_own_teacher(source: Path, images: LabelledImages) -> nn.Module:
    trained = load_trained(source)
    if trained.class_names != tuple(images.class_names):
        raise CheckpointError(
            f"{source} was trained for {trained.num_classes} classes "
            f"({', '.join(trained.class_names[:3])}, ...), the dataset has {images.num_classes} "
            f"({', '.join(images.class_names[:3])}, ...); use teacher.checkpoint=auto"
        )
    return trained.model


def read_pyth_teacher(source: Path, images: LabelledImages) -> nn.Module:
    """Read a CNN of the paper's code. Its file holds no class names, so only their number is checked."""
    model, checkpoint = model_from_pycls(source, "model")  # never the average, as in the paper's code
    if checkpoint.num_classes != images.num_classes:
        raise CheckpointError(
            f"{source} was trained for {checkpoint.num_classes} classes, the dataset has "
            f"{images.num_classes}; use teacher.checkpoint=auto"
        )
    return model
