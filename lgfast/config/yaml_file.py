"""YAML files that people write: one mapping, no key twice, and every failure in a line that names the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1 << 20  # far above any configuration; a device or a data file given by mistake is not read to its end


class StrictLoader(yaml.SafeLoader):
    """YAML of plain data; a key that stands twice is an error, where the last one would win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
            seen.add((key.tag, str(key.value)))
        return super().construct_mapping(node, deep)


def read_mapping(path: Path | str, label: str = "") -> dict[Any, Any]:
    """The mapping that a YAML file holds; an empty file holds an empty one.

    Args:
        label: goes before the path in messages, such as the option that named the file.
    Raises:
        ValueError: the file cannot be read, or is no YAML mapping.
    """
    where = f"{label}{path}"
    text = read_text(path, where)
    try:
        tree = yaml.load(text, StrictLoader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{where}: not valid YAML: {line}{error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None
    except ValueError as error:  # an impossible date or number
        raise ValueError(f"{where}: not valid YAML: {error}") from None
    except RecursionError:
        raise ValueError(f"{where}: nested too deeply for a configuration") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ValueError(f"{where}: expected a mapping of keys, got {type(tree).__name__}")
    return tree


def read_text(path: Path | str, where: str) -> str:
    """The text of a file of reasonable size, in UTF-8."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"{where}: expected a configuration, got more than 1 MiB")
        return content.decode("utf-8")
    except OSError as error:
        raise ValueError(f"{where}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not valid YAML: not UTF-8 at byte {error.start}") from None
