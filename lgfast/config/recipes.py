"""Configurations as YAML: the recipes of the package and files of the user's own."""

from __future__ import annotations

import difflib
from pathlib import Path

import yaml

from lgfast.config.keys import from_dict, to_dict
from lgfast.config.sections import Config
from lgfast.config.yaml_file import read_mapping

RECIPES = Path(__file__).parents[1] / "recipes"


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
    tree = read_mapping(path)
    for note in ("about", "published_top1"):  # for people and tables: what the recipe is, its accuracy elsewhere
        tree.pop(note, None)
    base = tree.pop("base", None)
    return from_dict(tree, load_recipe(base) if base else None)


def dump_yaml(config: Config) -> str:
    return yaml.safe_dump(to_dict(config), sort_keys=False)
