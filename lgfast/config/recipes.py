"""Read configurations from YAML: the recipes of the package and the user's own files."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import yaml

from lgfast.config.keys import from_dict, to_dict
from lgfast.config.sections import Config
from lgfast.config.yaml_file import read_mapping
from lgfast.runtime.suggestions import did_you_mean, nearest
from lgfast.spec.fields import shown

RECIPES = Path(__file__).parents[1] / "recipes"


def recipe_names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(name: str) -> Config:
    """Load a recipe of the package by name, or a YAML file by path. `base: NAME` in it builds on another recipe.

    Raises:
        ValueError: no such recipe or file (names the nearest), or a key or value that is none.

    >>> load_recipe("cifar100-deit-ti-guided").guidance.weight
    2.5
    """
    path = recipe_path(name)
    return _shipped(path) if path.parent == RECIPES else load_yaml(path)


@functools.cache  # a recipe of the package does not change while a process runs
def _shipped(path: Path) -> Config:
    return load_yaml(path)


def recipe_path(name: str) -> Path:
    """Return the path of the recipe; raise a ValueError that names the nearest one where there is none."""
    path = next((path for path in (f"{RECIPES}/{name}.yaml", name) if os.path.isfile(path)), None)
    if path is None:
        hint = did_you_mean(nearest(name, recipe_names()), "there is no such file either.")
        raise ValueError(f"unknown recipe {shown(name)}; {hint} Known: {', '.join(recipe_names())}")
    return Path(path)


def published_top1(name: str) -> float | None:
    """Return the accuracy (percent) that the paper's code reports for a recipe, or None."""
    return yaml.safe_load((RECIPES / f"{name}.yaml").read_text()).get("published_top1")


def load_yaml(path: Path | str, above: tuple[Path, ...] = ()) -> Config:
    """Read a configuration from a YAML file; errors for unknown keys name the nearest valid one.

    Args:
        above: the files that build on this one.
    """
    tree = read_mapping(path)
    for note in ("about", "published_top1"):  # for people and tables: what the recipe is, its accuracy elsewhere
        tree.pop(note, None)
    base = tree.pop("base", None)
    if not tree and base is None:
        raise ValueError(f"{path}: holds no configuration key; without one every default would be taken")
    try:
        return from_dict(tree, None if base is None else load_base(base, (*above, Path(path).resolve())))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def load_base(name: Any, above: tuple[Path, ...]) -> Config:
    """Return the configuration that a file names by its key `base`."""
    if not isinstance(name, str):
        raise ValueError(f"base: expected the name of a recipe or a file, got {shown(name)}")
    path = recipe_path(name)
    if path.resolve() in above:
        raise ValueError(f"base: {name} builds on itself; name another recipe or leave base away")
    return _shipped(path) if path.parent == RECIPES else load_yaml(path, above)


def dump_yaml(config: Config) -> str:
    return yaml.safe_dump(to_dict(config), sort_keys=False)
