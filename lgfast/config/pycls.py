"""Reads a YAML of the paper's code (`python -m lgfast.train --from-pycls FILE`) as a configuration of lgfast.

The short files of its repository, and the whole one that it writes beside each run. Every key is carried, or refused
because lgfast has no equivalent, or dropped for a reason that is given: nothing is ignored.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lgfast.config.keys import convert, replace, valid_keys
from lgfast.config.pycls_keys import (
    CNNS,
    DATASETS,
    DEFAULTS,
    KEYS,
    NETWORKS,
    ORIGINS,
    Carried,
    Dropped,
    Fixed,
    Network,
    OfNetwork,
)
from lgfast.config.recipes import load_recipe
from lgfast.config.sections import Config
from lgfast.config.yaml_file import read_mapping

Keys = Mapping[str, Any]


@dataclass(frozen=True)
class PyclsConfig:
    """What a YAML of the paper's code stands for.

    Attributes:
        config: the equivalent.
        notes: what is not in it, and why, one line each: keys dropped, and what the file leaves open.
    """

    config: Config
    notes: tuple[str, ...]


def read_pycls_config(path: str | Path) -> PyclsConfig:
    """The equivalent of a YAML of the paper's code.

    Raises:
        ValueError: not such a YAML, or a key or value without equivalent; names it.
    """
    tree = read_mapping(path)
    if "MODEL" not in tree:
        raise ValueError(f"{path}: not a configuration of the paper's code (no MODEL section)")
    try:
        stated = {key: plain(value, key) for key, value in flatten(tree)}
        return equivalent(stated, Path(path).stem)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def flatten(tree: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Dotted keys of a file's sections, with their values."""
    for name, values in tree.items():
        if isinstance(values, dict):
            yield from ((f"{name}.{leaf}", value) for leaf, value in values.items())
        else:
            yield str(name), values


def plain(value: Any, key: str) -> Any:
    """A value as the paper's code takes it: text that is a Python literal is that literal, a list is a tuple."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return value
    items = value if isinstance(value, (list, tuple)) else [value]
    if not all(item is None or isinstance(item, (bool, int, float, str)) for item in items):
        raise ValueError(f"{key}: expected a value or a list of values, got {type(value).__name__}")
    return tuple(value) if isinstance(value, (list, tuple)) else value


def equivalent(stated: Keys, stem: str) -> PyclsConfig:
    """The configuration that these keys stand for.

    Args:
        stated: dotted keys of the paper's code -> values, as `plain` gives them; its defaults stand behind them.
        stem: the run's name where OUT_DIR does not say it.
    """
    unknown = [key for key in stated if key not in KEYS]
    if unknown:
        raise ValueError(f"{unknown[0]}: not a key of the paper's code that lgfast understands")
    keys = DEFAULTS | dict(stated)
    network = None if keys["MODEL.TYPE"] == "ResNet" else find_network(keys)
    changes, dropped = carry(keys, network)
    template, model = resnet_changes(keys) if network is None else network_changes(keys, network)
    changes |= {"name": run_name(keys, stem)} | model | run_changes(keys) | data_changes(stated)
    changes |= teacher_changes(keys, f"{changes['data.dataset'].replace('_', '-')}-resnet56")
    notes = [*drop_notes(dropped, stated), *open_notes(keys, stated, changes)]
    return PyclsConfig(changed(load_recipe(template), changes), tuple(notes))


def carry(keys: Keys, network: Network | None) -> tuple[dict[str, Any], dict[str, str]]:
    """Our keys that take a value unchanged, and the keys of the paper's code without a meaning here and why."""
    changes: dict[str, Any] = {}
    dropped: dict[str, str] = {}
    absent = absent_parts(keys)
    for key, (default, meaning) in KEYS.items():
        why = meaning.why if isinstance(meaning, Dropped) else absent_reason(key, absent, network, keys)
        if why:
            dropped[key] = why
        elif isinstance(meaning, Carried):
            changes[meaning.to] = convert(keys[key], valid_keys()[meaning.to], key)
        elif isinstance(meaning, Fixed) and keys[key] != default:
            raise ValueError(f"{key}: only {default!r} has an equivalent in lgfast, got {keys[key]!r}")
    return changes, dropped


def changed(config: Config, changes: dict[str, Any]) -> Config:
    """`replace`, whose errors also name the keys of the paper's code."""
    try:
        return replace(config, changes)
    except ValueError as error:
        named = re.findall(r"[a-z_]+(?:[.][a-z_]+)*", str(error))
        theirs = [ORIGINS[ours] for ours in dict.fromkeys(named) if ours in ORIGINS]
        raise ValueError(f"{', '.join(theirs)}: {error}" if theirs else str(error)) from None


def run_name(keys: Keys, stem: str) -> str:
    """The last part of OUT_DIR, which the paper's code names after the file; the folder itself stays its own."""
    return Path(str(keys["OUT_DIR"] or "")).name.strip(".") or stem


def absent_parts(keys: Keys) -> tuple[tuple[tuple[str, ...], str], ...]:
    """Prefixes of keys that say nothing in this file, with the reason."""
    guided, distilled = flag(keys, "DISTILLATION.ENABLE_INTER"), flag(keys, "DISTILLATION.ENABLE_LOGIT")
    has_teacher = guided or distilled
    is_sgd = keys["OPTIM.OPTIMIZER"] == "sgd"
    parts = (
        (guided, ("DISTILLATION.INTER_",), "guidance is off (ENABLE_INTER)"),
        (distilled, ("DISTILLATION.LOGIT_",), "distillation of logits is off (ENABLE_LOGIT)"),
        (has_teacher, ("DISTILLATION.TEACHER_", "DISTILLATION.OFFLINE"), "the run has no teacher"),
        (has_teacher or keys["MODEL.TYPE"] == "ResNet", ("CNN.", "RESNET."), "the run has no CNN"),
        (is_sgd, ("OPTIM.MOMENTUM", "OPTIM.DAMPENING", "OPTIM.NESTEROV"), "of SGD, which OPTIMIZER does not name"),
        (not is_sgd, ("OPTIM.BETA1", "OPTIM.BETA2"), "of Adam and AdamW, which OPTIMIZER does not name"),
        (keys["OPTIM.WARMUP_EPOCHS"] != 0, ("OPTIM.WARMUP_FACTOR",), "there is no warm-up (WARMUP_EPOCHS 0)"),
    )
    return tuple((prefixes, why) for is_there, prefixes, why in parts if not is_there)


def absent_reason(key: str, absent: tuple, network: Network | None, keys: Keys) -> str | None:
    """Why a key says nothing in this file, or None."""
    if isinstance(KEYS[key][1], OfNetwork) and (network is None or key not in network.own):
        return f"{keys['MODEL.TYPE']} does not read it"
    return next((why for prefixes, why in absent if key.startswith(prefixes)), None)


def flag(keys: Keys, key: str) -> bool:
    return convert(keys[key], bool, key)


def find_network(keys: Keys) -> Network:
    """The network of the file's MODEL.TYPE that differs least from the file."""
    kind = keys["MODEL.TYPE"]
    if kind not in NETWORKS:
        raise ValueError(f"MODEL.TYPE: expected one of ResNet, {', '.join(NETWORKS)}, got {kind!r}")
    return min(NETWORKS[kind], key=lambda network: len(list(differing(keys, network))))


def differing(keys: Keys, network: Network) -> Iterator[str]:
    return (key for key, value in network.own.items() if keys[key] != value)


def network_changes(keys: Keys, network: Network) -> tuple[str, dict[str, Any]]:
    """The recipe of a transformer, and our keys for what the file changes of it."""
    changes = {}
    for key in differing(keys, network):
        is_rate_of_last = key == "TRANSFORMER.DROP_PATH_RATE" and isinstance(network.own[key], tuple)
        value = last_rate(keys[key]) if is_rate_of_last else keys[key]
        if key not in network.carried or value is None or isinstance(value, tuple):
            raise ValueError(
                f"{key}: {keys['MODEL.TYPE']} of lgfast has {network.own[key]!r}, and no key that changes it to "
                f"{keys[key]!r}"
            )
        changes[network.carried[key]] = convert(value, valid_keys()[network.carried[key]], key)
    if keys["MODEL.TYPE"] == "ConViT" and changes.keys() & {"model.embed_dim", "model.num_heads"}:
        changes["model.embed_dim"] = head_width(keys)  # timm's counts the width of one head
    if flag(keys, "DISTILLATION.ENABLE_LOGIT") and keys["MODEL.TYPE"] == "DeiT":
        changes["model.name"] = "deit_tiny_distilled_patch16_224"  # the paper's code gives DeiT alone a token for this
    suffix = "guided" if flag(keys, "DISTILLATION.ENABLE_INTER") else "base"
    return f"{network.recipe}-{suffix}", changes


def last_rate(rates: Any) -> Any:
    """The rate of CvT's last stage where the others have none, as ours; None where they do."""
    return rates[-1] if isinstance(rates, tuple) and len(rates) == 3 and rates[:2] == (0, 0) else None


def head_width(keys: Keys) -> int:
    width, heads = keys["TRANSFORMER.HIDDEN_DIM"], keys["TRANSFORMER.NUM_HEADS"]
    if heads < 1 or width % heads:
        raise ValueError(f"TRANSFORMER.NUM_HEADS: {heads} does not divide HIDDEN_DIM, {width}")
    return width // heads


def cnn_name(keys: Keys) -> str:
    depth = keys["CNN.DEPTH"]
    if depth not in CNNS:
        raise ValueError(f"CNN.DEPTH: lgfast has the paper's CNNs of depth {', '.join(map(str, CNNS))}, got {depth!r}")
    return CNNS[depth]


def resnet_changes(keys: Keys) -> tuple[str, dict[str, Any]]:
    """The recipe of a CNN, which trains like ResNet-56 whatever its depth."""
    if flag(keys, "DISTILLATION.ENABLE_INTER") or flag(keys, "DISTILLATION.ENABLE_LOGIT"):
        raise ValueError("MODEL.TYPE: a CNN as a student (ENABLE_INTER, ENABLE_LOGIT) has no equivalent in lgfast")
    return "cifar100-resnet56", {"model.name": cnn_name(keys)}


def run_changes(keys: Keys) -> dict[str, Any]:
    """Our keys for optimizer, precision and augmentation."""
    if keys["OPTIM.OPTIMIZER"] not in ("sgd", "adam", "adamw"):
        raise ValueError(f"OPTIM.OPTIMIZER: expected one of sgd, adam, adamw, got {keys['OPTIM.OPTIMIZER']!r}")
    return {
        "optim.name": keys["OPTIM.OPTIMIZER"],
        "precision": "fp16-amp" if flag(keys, "TRAIN.MIXED_PRECISION") else "fp32",
        "augment.weak": not flag(keys, "TRAIN.STRONG_AUGMENTATION"),
    }


def data_changes(stated: Keys) -> dict[str, Any]:
    """Our key for the images. Raise where the file states a number of classes or a split that they do not have."""
    name = stated.get("TRAIN.DATASET") or "cifar100"
    if name not in DATASETS:
        raise ValueError(f"TRAIN.DATASET: expected one of {', '.join(DATASETS)}, got {name!r}")
    ours, num_classes, test_split = DATASETS[name]
    truth = {"MODEL.NUM_CLASSES": num_classes, "TEST.DATASET": name, "TEST.SPLIT": test_split}
    for key, value in truth.items():
        if stated.get(key, value) != value:
            raise ValueError(f"{key}: {value!r} goes with TRAIN.DATASET {name}, got {stated[key]!r}")
    return {"data.dataset": ours}


def teacher_changes(keys: Keys, recipe: str) -> dict[str, Any]:
    """Our keys for the teacher: which one, when it works, and which of its stages are imitated."""
    guided, distilled = flag(keys, "DISTILLATION.ENABLE_INTER"), flag(keys, "DISTILLATION.ENABLE_LOGIT")
    if not guided and not distilled:
        return {"augment.teacher_size": 0}
    name, weights = cnn_name(keys), keys["DISTILLATION.TEACHER_WEIGHTS"]
    changes = {"teacher.recipe": recipe, "teacher.checkpoint": "auto"}
    if weights and os.path.exists(str(weights)):
        changes |= {"teacher.checkpoint": weights, "teacher.name": name}
    elif name != "cifar_resnet56":
        changes["teacher.name"] = name
    if flag(keys, "DISTILLATION.OFFLINE"):
        if distilled:
            raise ValueError("DISTILLATION.OFFLINE: without ENABLE_LOGIT alone, as in the paper's code")
        changes["teacher.targets"] = "offline"
    if distilled and keys["DISTILLATION.LOGIT_LOSS"] not in ("soft", "hard"):
        raise ValueError(f"DISTILLATION.LOGIT_LOSS: expected soft or hard, got {keys['DISTILLATION.LOGIT_LOSS']!r}")
    return changes | (guided_stages(keys, name) if guided else {})


def guided_stages(keys: Keys, teacher: str) -> dict[str, Any]:
    """Our key for the teacher's stages; timm's ResNets count the stem as a level before their first stage."""
    student, stages = (keys[f"DISTILLATION.INTER_{name}_INDEX"] for name in ("STUDENT", "TEACHER"))
    stages = convert(stages, tuple[int, ...], "DISTILLATION.INTER_TEACHER_INDEX")
    if not stages or not isinstance(student, tuple) or len(student) != len(stages):
        raise ValueError(
            f"DISTILLATION.ENABLE_INTER: expected as many blocks in INTER_STUDENT_INDEX as stages in "
            f"INTER_TEACHER_INDEX, at least one, got {student!r} and {stages!r}"
        )
    has_stem = not teacher.startswith("cifar_")
    return {"teacher.stages": tuple(stage + 1 if has_stem and stage >= 0 else stage for stage in stages)}


def drop_notes(dropped: Mapping[str, str], stated: Keys) -> Iterator[str]:
    """The keys of the file that its equivalent leaves out, by reason."""
    reasons = {key: why for key, why in dropped.items() if key in stated}
    for why in dict.fromkeys(reasons.values()):
        yield f"dropped, {why}: {', '.join(key for key in reasons if reasons[key] == why)}"
    if "OUT_DIR" in stated:
        yield "dropped, but for the run's name, which is its last part: OUT_DIR; here run_dir, or runs/NAME-DATE-TIME"


def open_notes(keys: Keys, stated: Keys, changes: Keys) -> Iterator[str]:
    """What the file leaves open, or means otherwise than the recipes of lgfast."""
    weights = keys["DISTILLATION.TEACHER_WEIGHTS"]
    if changes.get("teacher.checkpoint") == "auto":
        given = f"there is no file {weights}" if weights else "no file is named"
        yield f"DISTILLATION.TEACHER_WEIGHTS: {given}; the teacher is trained first, where the paper's code would stop"
    if flag(keys, "DISTILLATION.ENABLE_LOGIT"):
        yield "DISTILLATION.ENABLE_LOGIT: as it is meant; the published code stops with a TypeError here"
    if not stated.get("TRAIN.DATASET"):
        yield "TRAIN.DATASET: not stated, where the paper's code would stop; taken as cifar100"
    if changes["precision"] == "fp32":
        yield "TRAIN.MIXED_PRECISION: off, so fp32 as there; --precision auto is bf16 where it is faster on the device"
