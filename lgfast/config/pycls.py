"""Reads a YAML of the paper's code (`python -m lgfast.train --from-pycls FILE`) as a configuration of lgfast.

Every key must be understood: one that would change the result and has no equivalent here is an error, never ignored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lgfast.config import Config, load_recipe, replace

# MODEL.TYPE -> depth (TRANSFORMER.DEPTH, or CNN.DEPTH) -> recipe that holds the network's equivalent
STUDENTS = {
    "DeiT": {12: "cifar100-deit-ti"},
    "T2TViT": {7: "cifar100-t2t-vit-7", 14: "cifar100-t2t-vit-14"},
    "PiT": {(2, 6, 4): "cifar100-pit-ti"},
    "PVT": {(2, 2, 2, 2): "cifar100-pvt-ti"},
    "PVTv2": {(2, 2, 2, 2): "cifar100-pvtv2-b0"},
    "ConViT": {12: "cifar100-convit-ti"},
    "CvT": {(1, 2, 10): "cifar100-cvt-13"},
}
DATASETS = {"cifar100": "cifar100", "flowers": "flowers102", "tiny_imagenet": "tiny_imagenet", "chaoyang": "chaoyang"}

# Widths of the paper's networks; a YAML that states others describes a network that lgfast does not have.
HIDDEN_DIM = {
    "cifar100-deit-ti": 192,
    "cifar100-t2t-vit-7": 256,
    "cifar100-t2t-vit-14": 384,
    "cifar100-pit-ti": (64, 128, 256),
    "cifar100-pvt-ti": (64, 128, 320, 512),
    "cifar100-pvtv2-b0": (32, 64, 160, 256),
    "cifar100-convit-ti": 192,
    "cifar100-cvt-13": (64, 192, 384),
}

# The paper code's key -> ours, where the value carries over as it is.
SAME_VALUE = {
    "OPTIM.OPTIMIZER": "optim.name",
    "OPTIM.BASE_LR": "optim.lr",
    "OPTIM.MIN_LR": "optim.min_lr",
    "OPTIM.MAX_EPOCH": "epochs",
    "OPTIM.MOMENTUM": "optim.momentum",
    "OPTIM.WEIGHT_DECAY": "optim.weight_decay",
    "OPTIM.WARMUP_FACTOR": "optim.warmup_factor",
    "OPTIM.WARMUP_EPOCHS": "optim.warmup_epochs",
    "TRAIN.BATCH_SIZE": "data.batch_size",
    "TRAIN.LABEL_SMOOTHING": "optim.label_smoothing",
    "TRAIN.MIXUP_ALPHA": "augment.mixup_alpha",
    "TRAIN.CUTMIX_ALPHA": "augment.cutmix_alpha",
    "TEST.BATCH_SIZE": "data.eval_batch_size",
    "DATA_LOADER.NUM_WORKERS": "data.workers",
    "MODEL.IMG_SIZE": "augment.image_size",
    "RNG_SEED": "seed",
    "OUT_DIR": "run_dir",
}
GUIDANCE = {
    "DISTILLATION.INTER_STUDENT_INDEX": "guidance.student_layers",
    "DISTILLATION.INTER_TEACHER_INDEX": "teacher.stages",
    "DISTILLATION.INTER_WEIGHT": "guidance.weight",
    "DISTILLATION.INTER_TRANSFORM": "guidance.transform",
}
LOGITS = {
    "DISTILLATION.LOGIT_LOSS": "distill.mode",
    "DISTILLATION.LOGIT_TEMP": "distill.temperature",
    "DISTILLATION.LOGIT_WEIGHT": "distill.weight",
}
# Values of the paper code's optimizer where its YAML is silent and lgfast's recipe says otherwise.
DEFAULTS = {
    "OPTIM.OPTIMIZER": "sgd",
    "OPTIM.BASE_LR": 0.1,
    "OPTIM.MIN_LR": 0.0,
    "OPTIM.MAX_EPOCH": 200,
    "OPTIM.MOMENTUM": 0.9,
    "OPTIM.WEIGHT_DECAY": 5e-4,
    "OPTIM.WARMUP_FACTOR": 0.1,
    "OPTIM.WARMUP_EPOCHS": 0,
    "DISTILLATION.LOGIT_LOSS": "soft",
}
# Keys whose only supported value is this one.
FIXED = {
    "OPTIM.LR_POLICY": "cos",
    "OPTIM.NESTEROV": True,
    "OPTIM.DAMPENING": 0.0,
    "OPTIM.HEAD_LR_RATIO": 1.0,
    "OPTIM.EMA_UPDATE_PERIOD": 0,
    "TRAIN.WEIGHTS": "",
    "MODEL.IN_CHANNELS": 3,
    "MODEL.LOSS_FUN": "cross_entropy",
    "RESNET.TRANS_FUN": "basic_transform",
    "RESNET.NUM_GROUPS": 1,
    "RESNET.WIDTH_PER_GROUP": 64,
    "TRANSFORMER.DROP_RATE": 0.0,
    "TRANSFORMER.ATTENTION_DROP_RATE": 0.0,
    "DISTILLATION.TEACHER_MODEL": "ResNet",
}
# Read elsewhere in this file, or without influence on the result (machine, logging, details fixed by the network).
READ = {"MODEL.TYPE", "CNN.DEPTH", "TRANSFORMER.DEPTH", "TRANSFORMER.HIDDEN_DIM", "TRANSFORMER.DROP_PATH_RATE"}
READ |= {"TRAIN.DATASET", "TEST.DATASET", "TRAIN.SPLIT", "TEST.SPLIT", "TRAIN.MIXED_PRECISION", "MODEL.NUM_CLASSES"}
READ |= {"TRAIN.STRONG_AUGMENTATION", "DISTILLATION.TEACHER_IMG_SIZE"}
READ |= {f"DISTILLATION.{name}" for name in ("ENABLE_INTER", "ENABLE_LOGIT", "OFFLINE", "TEACHER_WEIGHTS")}
NO_INFLUENCE = ("CUDNN.", "PREC_TIME.", "LAUNCH.", "NUM_GPUS", "MAX_GPUS_PER_NODE", "DESC", "VERBOSE", "CFG_DEST")
NO_INFLUENCE += ("LOG_DEST", "LOG_PERIOD", "DIST_BACKEND", "HOST", "PORT_RANGE", "DOWNLOAD_CACHE", "TEST.WEIGHTS")
NO_INFLUENCE += ("DATA_LOADER.PIN_MEMORY", "TRAIN.AUTO_RESUME", "DISTILLATION.INTER_LOSS")
# The features of FEATURE_FILE are computed anew from the teacher's weights.
NO_INFLUENCE += ("DISTILLATION.FEATURE_FILE", "OPTIM.EMA_ALPHA", "OPTIM.STEPS", "OPTIM.LR_MULT", "CNN.", "T2T.", "PIT.")
NO_INFLUENCE += ("PVT.", "CONVIT.", "CVT.", "TRANSFORMER.")


def load_pycls_config(path: str | Path) -> Config:
    """The configuration that a YAML of the paper's code stands for.

    Raises:
        ValueError: not such a YAML, a key without equivalent, or a network that the paper does not have.
    """
    try:
        tree = yaml.safe_load(Path(path).read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(tree, dict) or "MODEL" not in tree:
        raise ValueError(f"{path}: not a configuration of the paper's code (no MODEL section)")
    keys = flatten(tree)
    check_understood(keys, path)
    is_guided = bool(keys.get("DISTILLATION.ENABLE_INTER"))
    base = load_recipe(recipe_name(keys, is_guided, path))
    return replace(base, changes(keys, is_guided) | {"name": Path(path).stem})


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for name, value in tree.items():
        keys |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": plain(value)}
    return keys


def plain(value: Any) -> Any:
    """Lists as tuples, so that values compare."""
    return tuple(value) if isinstance(value, list) else value


def check_understood(keys: dict[str, Any], path: str | Path) -> None:
    for key, value in keys.items():
        values = value if isinstance(value, tuple) else (value,)  # CvT states some rates per stage
        if key in FIXED:
            if any(item != FIXED[key] for item in values):
                raise ValueError(f"{path}: {key}: only {FIXED[key]!r} has an equivalent in lgfast, got {value!r}")
        elif key not in SAME_VALUE | GUIDANCE | LOGITS and key not in READ and not key.startswith(NO_INFLUENCE):
            raise ValueError(f"{path}: {key}: not a key of the paper's code that lgfast understands")


def recipe_name(keys: dict[str, Any], is_guided: bool, path: str | Path) -> str:
    """The recipe whose network is the one described."""
    kind = keys.get("MODEL.TYPE", "ResNet")
    if kind == "ResNet":
        return resnet_recipe(keys.get("CNN.DEPTH", 56), path)
    depth = keys.get("TRANSFORMER.DEPTH")
    recipe = STUDENTS.get(kind, {}).get(depth)
    if recipe is None or keys.get("TRANSFORMER.HIDDEN_DIM") != HIDDEN_DIM[recipe]:
        width = keys.get("TRANSFORMER.HIDDEN_DIM")
        raise ValueError(f"{path}: no such network in the paper: {kind} of depth {depth} and width {width}")
    return f"{recipe}-{'guided' if is_guided else 'base'}"


def resnet_recipe(depth: int, path: str | Path) -> str:
    recipe = {18: "cifar100-resnet18", 56: "cifar100-resnet56"}.get(depth)
    if recipe is None:
        raise ValueError(f"{path}: CNN.DEPTH: the paper's code trains depth 18 and 56, got {depth}")
    return recipe


def changes(keys: dict[str, Any], is_guided: bool) -> dict[str, Any]:
    """Our keys that the YAML, or the paper code's defaults behind it, set."""
    stated = DEFAULTS | keys
    changed = {ours: stated[theirs] for theirs, ours in SAME_VALUE.items() if stated.get(theirs) is not None}
    changed["data.dataset"] = dataset(keys)
    is_distilled = bool(keys.get("DISTILLATION.ENABLE_LOGIT"))
    if is_guided:
        changed |= {ours: keys[theirs] for theirs, ours in GUIDANCE.items() if theirs in keys}
    if is_distilled:
        changed |= {ours: stated[theirs] for theirs, ours in LOGITS.items() if theirs in stated}
        if keys.get("MODEL.TYPE") == "DeiT":  # the paper's code gives it, and no other student, a token for this
            changed["model.name"] = "deit_tiny_distilled_patch16_224"
    if is_guided or is_distilled:
        changed |= teacher_changes(keys, changed["data.dataset"])
    if keys.get("TRAIN.MIXED_PRECISION"):
        changed["precision"] = "fp16-amp"
    if keys.get("TRAIN.STRONG_AUGMENTATION") is False:
        changed["augment.weak"] = True
    rate = keys.get("TRANSFORMER.DROP_PATH_RATE")
    if rate is not None:
        changed["model.drop_path_rate"] = max(rate) if isinstance(rate, tuple) else rate
    return changed


def teacher_changes(keys: dict[str, Any], dataset_name: str) -> dict[str, Any]:
    """Our keys that say which teacher, at which size, and how its features are had."""
    weights = keys.get("DISTILLATION.TEACHER_WEIGHTS")
    changed = {
        "teacher.checkpoint": weights if weights and Path(weights).exists() else "auto",
        "teacher.recipe": teacher_recipe(dataset_name),
    }
    if "DISTILLATION.TEACHER_IMG_SIZE" in keys:
        changed["augment.teacher_size"] = keys["DISTILLATION.TEACHER_IMG_SIZE"]
    if keys.get("DISTILLATION.OFFLINE"):
        changed["teacher.targets"] = "offline"
    return changed


def dataset(keys: dict[str, Any]) -> str:
    name = keys.get("TRAIN.DATASET", "cifar100")
    if name not in DATASETS:
        raise ValueError(f"TRAIN.DATASET: expected one of {', '.join(DATASETS)}, got {name!r}")
    return DATASETS[name]


def teacher_recipe(name: str) -> str:
    return f"{name.replace('_', '-')}-resnet56"
