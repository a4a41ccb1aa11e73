"""Dotted keys, such as optim.lr, and their values: overrides, plain dictionaries, conversion to a field's type."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from functools import cache
from typing import Any, Literal, get_type_hints

from lgfast.config.sections import Config

GONE = ("log.save_every_epochs",)  # in files that runs and teachers left earlier; what it said changes no result

# Keys that may differ when a run is continued: they do not change what is computed.
FREE_ON_RESUME = ("device", "run_dir", "name", "data.root", "data.workers", "data.download", "log.", "teacher.cache")


field_types = cache(get_type_hints)  # of a section: field -> type


def valid_keys(cls: type = Config, prefix: str = "") -> dict[str, Any]:
    """Every dotted key of the configuration with its type."""
    keys: dict[str, Any] = {}
    for name, hint in field_types(cls).items():
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
    hints = field_types(cls)
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
    try:
        return dataclasses.replace(base, **changes)
    except ValueError as error:  # a section names its own fields
        raise ValueError(f"{prefix}{error}") from None


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


def digest(tree: Any) -> str:
    """Short, stable hash of plain data."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]
