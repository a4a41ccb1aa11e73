"""Handle dotted keys, such as optim.lr: overrides, plain dictionaries, conversion to a field's type."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from types import MappingProxyType, NoneType
from typing import Any, Literal, TypeGuard, get_args, get_origin

from lgfast.config.sections import Config
from lgfast.runtime.suggestions import did_you_mean, nearest
from lgfast.spec.fields import field_types, misfit, shown

GONE = ("log.save_every_epochs",)  # in files that runs and teachers left earlier; what it said changes no result

# Keys that may differ when a run is continued: they do not change what is computed.
FREE_ON_RESUME = ("device", "run_dir", "name", "data.root", "data.workers", "data.download", "log.", "teacher.cache")


@functools.cache
def valid_keys(cls: type = Config, prefix: str = "") -> Mapping[str, Any]:
    """Return every dotted key of the configuration with its type."""
    keys: dict[str, Any] = {}
    for name, hint in field_types(cls).items():
        if is_section(hint):
            keys.update(valid_keys(hint, f"{prefix}{name}."))
        else:
            keys[f"{prefix}{name}"] = hint
    return MappingProxyType(keys)


def is_section(hint: Any) -> TypeGuard[type]:
    """Whether the type of a field has keys of its own."""
    return dataclasses.is_dataclass(hint)


def check_key(key: str) -> None:
    """Raise a ValueError that names the nearest valid keys if this one does not exist."""
    if not isinstance(key, str):
        raise ValueError(f"expected a configuration key such as optim.lr, got {shown(key)}")
    if key not in valid_keys():
        raise ValueError(f"unknown configuration key {shown(key)}; {hint_for(key)}")


def hint_for(key: str) -> str:
    """Suggest what an unknown key may mean: a near key, that name elsewhere, or all keys of the section."""
    keys = list(valid_keys())
    section, _, leaf = key.rpartition(".")
    own = [other.removeprefix(f"{section}.") for other in keys if section and other.startswith(f"{section}.")]
    elsewhere = [other for other in keys if other.rpartition(".")[2] == leaf]
    found = [f"{section}.{name}" for name in nearest(leaf, own, 1)] or elsewhere
    if own and not found:
        return f"{section} has {', '.join(own)}"
    return did_you_mean(found or nearest(key, keys, 1), "python -m lgfast.train --help lists the keys")


def split_assignment(text: str) -> tuple[str, str]:
    """Split a `--set KEY=VALUE` into key and value."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set: expected KEY=VALUE, got {text!r}")
    check_key(key)
    return key, value


def replace(config: Config, changes: dict[str, Any]) -> Config:
    """Return a copy with dotted keys set; values are converted to the field's type.

    Raises:
        ValueError: an unknown key, or a value that the key does not take.

    >>> replace(Config(), {"optim.lr": "1e-3", "epochs": 10}).optim.lr
    0.001
    """
    tree: dict[str, Any] = {}
    for key, value in changes.items():
        check_key(key)
        *path, leaf = key.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = value
    return from_dict(tree, config)


def to_dict(config: Config) -> dict[str, Any]:
    """Return a plain nested dictionary; tuples become lists, as in YAML and JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(tree: dict[str, Any], base: Config | None = None) -> Config:
    """Make a configuration from a nested dictionary over `base` (the defaults where None)."""
    return _build(Config, tree, base or _defaults(), "")


@functools.cache
def _defaults() -> Config:
    return Config()


def _build(cls: type, tree: Any, base: Any, prefix: str) -> Any:
    if not isinstance(tree, dict):
        raise ValueError(f"{prefix[:-1] or 'configuration'}: expected a mapping of keys, got {shown(tree)}")
    hints = field_types(cls)
    changes = {}
    for name, value in tree.items():
        if f"{prefix}{name}" in GONE:
            continue
        if name not in hints:
            check_key(f"{prefix}{name}")
        hint = hints[name]
        if is_section(hint):
            changes[name] = _build(hint, value, getattr(base, name), f"{prefix}{name}.")
        else:
            changes[name] = convert(value, hint, f"{prefix}{name}")
    try:
        return dataclasses.replace(base, **changes)
    except ValueError as error:  # a section names its own fields
        raise ValueError(f"{prefix}{error}") from None


def convert(value: Any, hint: Any, key: str) -> Any:
    """Convert `value`, from YAML, JSON or a command line, to the field's type; raise a ValueError that names the
    key."""
    value = parse(value, hint)
    if expected := misfit(value, hint):
        raise ValueError(f"{key}: expected {expected}, got {shown(value)}")
    return value


def parse(value: Any, hint: Any) -> Any:
    """Convert `value` to the type where that is possible; else return it unchanged."""
    origin, args = get_origin(hint), get_args(hint)
    if NoneType in args:  # X | None
        return None if value in (None, "none", "None") else parse(value, args[0])
    if origin is tuple:
        items = value.replace(",", " ").split() if isinstance(value, str) else value
        return tuple(parse(item, args[0]) for item in (items if isinstance(items, (list, tuple)) else [items]))
    if origin is Literal and isinstance(value, bool):  # YAML reads a bare on or off as a truth value
        return "on" if value else "off"
    if hint is bool:
        return {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value
    return number(value, hint) if hint in (int, float) else value


def number(value: Any, hint: type) -> Any:
    """Convert text or a number to `hint`, int or float, where nothing is lost; else return the value unchanged."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return value
    if hint is int and isinstance(value, float):
        return int(value) if value.is_integer() else value
    try:
        return hint(value)
    except (ValueError, OverflowError):
        return value


def get(config: Any, key: str) -> Any:
    """Return the value at a dotted key."""
    for part in key.split("."):
        config = getattr(config, part)
    return config


def digest(tree: Any) -> str:
    """Return a short, stable hash of plain data."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]
