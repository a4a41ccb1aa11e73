"""Configuration: frozen dataclasses, YAML recipes, and checks that name the key, the value and the fix."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml

from lgfast.ops.augment_spec import AugmentSpec

RECIPES = Path(__file__).parent / "recipes"
GONE = ("log.save_every_epochs",)  # in files that runs and teachers left earlier; what it said changes no result


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they reach the step."""

    dataset: str = "digits"  # digits, cifar10, cifar100, flowers102, tiny_imagenet, chaoyang, folder
    root: str = "data"  # folder that holds the dataset's files
    download: bool = False  # fetch the files where torchvision can
    skip_broken: bool = False  # leave out images that cannot be decoded, with a warning that counts and names them
    # resident (native, images in memory), dali (NVIDIA DALI reads image files), timm (Pillow workers)
    loader: Literal["resident", "dali", "timm"] = "resident"
    workers: int = 0  # timm: processes that prepare images, 0: this one; dali: decoding threads, 0: one a core
    seed: int | None = None  # of the order of the images and of their views; none: the run's seed
    views: int = 0  # distinct views of each image, which then recur; 0: a new one every epoch
    batch_size: int = 64  # images of one optimisation step, over all ranks
    eval_batch_size: int = 200
    train_limit: int = 0  # keep this many training images, classes balanced; 0: all
    test_limit: int = 0  # likewise for the test images


@dataclass(frozen=True)
class ModelConfig:
    """The network to train. The shape fields override the named model's own where they are set."""

    name: str = "deit_tiny_patch16_224"
    drop_path_rate: float = 0.1
    patch_size: int | None = None
    embed_dim: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    # fused: lgfast.ops.short_attention wherever its kernels take the input; plain: the model's own
    attention: Literal["fused", "plain"] = "fused"

    def shape_overrides(self) -> dict[str, int]:
        names = ("patch_size", "embed_dim", "depth", "num_heads")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass(frozen=True)
class TeacherConfig:
    """The frozen CNN whose features guide the student."""

    recipe: str = "digits-resnet8"  # recipe that trains it when checkpoint=auto
    name: str = ""  # another CNN than the recipe's, any of timm's; "": the recipe's
    checkpoint: str = "auto"  # auto: train once per (images, recipe) and reuse; otherwise a run folder or weights file
    # batch: statistics of the current batch (of this rank), as the paper's code does; synced: of all ranks' batches;
    # running: the trained statistics
    bn: Literal["batch", "synced", "running"] = "batch"
    # live: computed in every step; cached: once per image and view, then read (exact; data.views=K, bn=running);
    # offline: as the paper's code has it, maps of the un-augmented images, cropped and flipped as the images are
    targets: Literal["live", "cached", "offline"] = "live"
    stages: tuple[int, ...] = ()  # teacher stages to imitate; (): the model's default three
    cache: str = ""  # folder of trained teachers and stored targets; "": $LGFAST_CACHE or ~/.cache/lgfast


@dataclass(frozen=True)
class GuidanceConfig:
    """How the student imitates the teacher (Li et al., ECCV 2022)."""

    weight: float = 2.5  # factor of the feature loss; 0: none, and no teacher unless it is distilled
    student_layers: tuple[int, ...] = ()  # flat block indices; (): the paper's choice for the model
    # what the maps are compared by; similarity: between the images of one forward pass of one rank
    transform: Literal["linear", "attention", "similarity"] = "linear"


@dataclass(frozen=True)
class DistillConfig:
    """Distillation of the teacher's logits, beside guidance or alone.

    A model with a distillation token (deit_tiny_distilled_patch16_224) learns it with that token's head.
    """

    mode: Literal["none", "soft", "hard"] = "none"  # soft: the teacher's probabilities; hard: its most likely class
    temperature: float = 1.0  # both logits are divided by it (soft)
    weight: float = 0.5  # loss: (1 - weight) * cross entropy + weight * distillation + guidance


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer and learning-rate schedule."""

    name: str = "adamw"  # adamw: this package's flat one; otherwise any name of timm's optimizer factory
    lr: float = 5e-4
    min_lr: float = 5e-6
    weight_decay: float = 0.05
    momentum: float = 0.9  # of SGD
    warmup_epochs: int = 20
    warmup_factor: float = 1e-3  # first learning rate of the warm-up, as a share of lr
    per_step: bool = False  # True: the schedule moves at every step; False: once an epoch, as the paper's code does
    label_smoothing: float = 0.0
    clip_norm: float = 0.0  # global gradient norm; 0: no clipping


@dataclass(frozen=True)
class StepConfig:
    """How a step is executed; graph, streams, compile and fused_layers do not change what it computes."""

    graph: Literal["auto", "on", "off"] = "auto"  # replay the step as one CUDA graph; auto: where it can be captured
    streams: Literal["on", "off"] = "on"  # the teacher runs beside the student (CUDA)
    compile: Literal["on", "off"] = "off"  # the student under torch.compile
    # the student's residual + LayerNorm and bias + GELU through add_layer_norm and bias_gelu (layer_fusion.py)
    fused_layers: Literal["on", "off"] = "off"
    accumulate: int = 1  # forward and backward passes per step, each over an equal part of the batch
    ema_decay: float = 0.0  # of a moving average of the weights, which is then what is judged and kept; 0: none


@dataclass(frozen=True)
class EvalConfig:
    """When and on what the model is judged."""

    protocol: Literal["holdout", "paper"] = "holdout"  # paper: best epoch chosen on the test set, as its code does
    holdout_fraction: float = 0.1  # share of the training images that selects the best epoch (holdout)
    every_epochs: int = 1


@dataclass(frozen=True)
class LogConfig:
    """What the run writes, and how often."""

    every_steps: int = 50  # read the meters back and write a line
    save_every_steps: int = 0  # checkpoints within an epoch too; 0: at the end of epochs only
    save_every_s: float = 30.0  # a checkpoint at the end of an epoch, where the last one is this old; 0: every epoch
    keep_checkpoints: int = 2
    print_epochs: bool = True  # one line an epoch on the terminal
    tensorboard: bool = True  # where the package tensorboard is installed


@dataclass(frozen=True)
class Config:
    """One training run."""

    name: str = "digits"  # names the run folder
    epochs: int = 300
    max_steps: int = 0  # stop after this many steps; 0: no limit
    seed: int = 1
    device: str = "auto"  # auto, cpu, cuda, cuda:1
    precision: Literal["auto", "fp32", "bf16", "fp16-amp"] = "auto"  # auto: bf16 on a GPU that has it, else fp32
    run_dir: str = ""  # "": runs/<name>-<date>-<time>
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentSpec = field(default_factory=AugmentSpec)
    model: ModelConfig = field(default_factory=ModelConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    step: StepConfig = field(default_factory=StepConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        check_positive(self, "epochs", "data.batch_size", "data.eval_batch_size", "optim.lr", "eval.every_epochs")
        check_positive(self, "log.every_steps", "log.keep_checkpoints")
        check_not_negative(self, "guidance.weight", "optim.min_lr", "optim.weight_decay", "optim.warmup_epochs")
        check_not_negative(self, "data.train_limit", "data.test_limit", "data.workers", "max_steps", "optim.clip_norm")
        check_not_negative(self, "log.save_every_steps", "log.save_every_s", "data.views")
        check_positive(self, "step.accumulate")
        if self.data.batch_size % self.step.accumulate:
            raise ValueError(
                f"step.accumulate: {self.step.accumulate} does not divide data.batch_size, {self.data.batch_size}"
            )
        if not 0 <= self.step.ema_decay < 1:
            raise ValueError(f"step.ema_decay: expected 0 <= decay < 1, got {self.step.ema_decay}")
        if not 0 < self.eval.holdout_fraction < 1:
            raise ValueError(f"eval.holdout_fraction: expected 0 < fraction < 1, got {self.eval.holdout_fraction}")
        check_positive(self, "distill.temperature")
        check_seed(self, "seed", "data.seed")
        check_share(self, "distill.weight", "optim.label_smoothing", "model.drop_path_rate")
        if self.needs_teacher and self.augment.teacher_size <= 0:
            raise ValueError(
                "augment.teacher_size: the teacher needs an input size, got 0; set it (32), "
                "or guidance.weight=0 and distill.mode=none to train without a teacher"
            )
        if obstacle := targets_obstacle(self):
            raise ValueError(f"teacher.targets: {self.teacher.targets} cannot be: {obstacle}")

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher's maps or logits are targets."""
        return self.guidance.weight > 0 or self.distill.mode != "none"

    @property
    def view_seed(self) -> int:
        """Seed of the order of the images and of their views."""
        return self.seed if self.data.seed is None else self.data.seed


def targets_obstacle(config: Config) -> str | None:
    """Why the teacher's targets cannot be computed ahead of the step as asked, or None."""
    targets, augment, is_batch = config.teacher.targets, config.augment, config.teacher.bn != "running"
    if targets == "live" or not config.needs_teacher:
        return None
    if augment.mixes:
        return "mixed images are new every time; set augment.mixup_alpha=0 and augment.cutmix_alpha=0"
    if targets == "cached":
        if config.data.views == 0:
            return "only views that recur can be kept; set data.views=K"
        return "a map depends on the batch's other images; use teacher.bn=running" if is_batch else None
    if config.distill.mode != "none":
        return "logits of whole images are no targets for crops; use distill.mode=none"
    if augment.weak:
        return "maps of whole images have no black border to shift in; use augment.weak=false"
    return "one process computes the maps; use teacher.bn=batch or running" if config.teacher.bn == "synced" else None


def get(config: Any, key: str) -> Any:
    """The value at a dotted key."""
    for part in key.split("."):
        config = getattr(config, part)
    return config


def check_positive(config: Any, *keys: str) -> None:
    for key in keys:
        if not get(config, key) > 0:
            raise ValueError(f"{key}: expected a number above 0, got {get(config, key)}")


def check_not_negative(config: Any, *keys: str) -> None:
    for key in keys:
        if not get(config, key) >= 0:
            raise ValueError(f"{key}: expected 0 or more, got {get(config, key)}")


def check_seed(config: Any, *keys: str) -> None:
    for key in keys:
        if not -(2**63) <= (get(config, key) or 0) < 2**63:
            raise ValueError(f"{key}: expected a number of 64 bits, got {get(config, key)}")


def check_share(config: Any, *keys: str) -> None:
    for key in keys:
        if not 0 <= get(config, key) <= 1:
            raise ValueError(f"{key}: expected 0 to 1, got {get(config, key)}")


def valid_keys(cls: type = Config, prefix: str = "") -> dict[str, Any]:
    """Every dotted key of the configuration with its type."""
    keys: dict[str, Any] = {}
    for name, hint in get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            keys |= valid_keys(hint, f"{prefix}{name}.")
        else:
            keys[f"{prefix}{name}"] = hint
    return keys


def check_key(key: str) -> None:
    """Raise a ValueError that names the nearest valid key if this one does not exist."""
    keys = valid_keys()
    if key in keys:
        return
    if not isinstance(key, str):
        raise ValueError(f"expected a configuration key such as optim.lr, got {key!r}")
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.4)
    same_leaf = [k for k in keys if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    hint = (same_leaf or near or ["name"])[0]
    raise ValueError(f"unknown configuration key {key!r}; did you mean {hint!r}?")


def split_assignment(text: str) -> tuple[str, str]:
    """Key and value of a `--set KEY=VALUE`."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set: expected KEY=VALUE, got {text!r}")
    check_key(key)
    return key, value


def replace(config: Config, changes: dict[str, Any]) -> Config:
    """A copy with dotted keys set, e.g. {"optim.lr": 1e-3}. Values are converted to the field's type."""
    tree = to_dict(config)
    for key, value in changes.items():
        check_key(key)
        *path, leaf = key.split(".")
        node = tree
        for part in path:
            node = node[part]
        node[leaf] = value
    return from_dict(tree)


def to_dict(config: Config) -> dict[str, Any]:
    """Plain nested dictionary; tuples become lists, as in YAML and JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(tree: dict[str, Any], base: Config | None = None) -> Config:
    """Configuration from a nested dictionary over `base` (the defaults where None)."""
    return _build(Config, tree, base or Config(), "")


def _build(cls: type, tree: Any, base: Any, prefix: str) -> Any:
    if not isinstance(tree, dict):
        raise ValueError(f"{prefix[:-1] or 'configuration'}: expected a mapping of keys, got {tree!r}")
    hints = get_type_hints(cls)
    changes = {}
    for name, value in tree.items():
        if f"{prefix}{name}" in GONE:
            continue
        if name not in hints:
            check_key(f"{prefix}{name}")
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            changes[name] = _build(hint, value, getattr(base, name), f"{prefix}{name}.")
        else:
            changes[name] = convert(value, hint, f"{prefix}{name}")
    return dataclasses.replace(base, **changes)


def convert(value: Any, hint: Any, key: str) -> Any:
    """`value` as the field's type, or a ValueError that names the key."""
    origin, args = getattr(hint, "__origin__", None), getattr(hint, "__args__", ())
    if origin is Literal:
        if isinstance(value, bool):  # YAML reads a bare on or off as a truth value
            value = "on" if value else "off"
        if value in args:
            return value
        raise ValueError(f"{key}: expected one of {', '.join(map(str, args))}, got {value!r}")
    if origin is tuple:
        items = value if isinstance(value, (list, tuple)) else str(value).replace(",", " ").split()
        if args[-1] is not ... and len(items) != len(args):
            raise ValueError(f"{key}: expected {len(args)} values, got {value!r}")
        return tuple(convert(item, args[0], key) for item in items)
    if args and type(None) in args:  # int | None
        return None if value is None or value == "none" else convert(value, args[0], key)
    if hint is bool:
        if isinstance(value, bool) or value in ("true", "false"):
            return value is True or value == "true"
        raise ValueError(f"{key}: expected true or false, got {value!r}")
    try:
        if hint is int and isinstance(value, float) and not value.is_integer():
            raise ValueError
        return hint(value)
    except (TypeError, ValueError):
        raise ValueError(f"{key}: expected {hint.__name__}, got {value!r}") from None


def recipe_names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(name: str) -> Config:
    """A recipe of the package by name, or a YAML file by path. `base: NAME` builds on another recipe."""
    path = RECIPES / f"{name}.yaml"
    if not path.exists():
        path = Path(name)
    if not path.is_file():
        near = difflib.get_close_matches(name, recipe_names(), n=1, cutoff=0.0)
        raise ValueError(f"unknown recipe {name!r}; did you mean {near[0]!r}? Known: {', '.join(recipe_names())}")
    return load_yaml(path)


def published_top1(name: str) -> float | None:
    """Accuracy (percent) that the paper's code reports for a recipe, where it does."""
    return yaml.safe_load((RECIPES / f"{name}.yaml").read_text()).get("published_top1")


def load_yaml(path: Path | str) -> Config:
    """Configuration from a YAML file; unknown keys are errors that name the nearest valid one."""
    try:
        tree = yaml.safe_load(Path(path).read_text()) or {}
    except OSError as error:
        raise ValueError(f"cannot read the configuration {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: expected a mapping of configuration keys, got {type(tree).__name__}")
    for note in ("about", "published_top1"):  # for people and tables: what the recipe is, its accuracy elsewhere
        tree.pop(note, None)
    base = tree.pop("base", None)
    return from_dict(tree, load_recipe(base) if base else None)


def dump_yaml(config: Config) -> str:
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def digest(tree: Any) -> str:
    """Short, stable hash of plain data."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]
