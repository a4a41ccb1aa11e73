"""MkDocs hook: writes the tables of the configuration page, a line for every key."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

from lgfast.config import Config, get
from lgfast.config.keys import is_section
from lgfast.spec.fields import field_types

MARKER = "<!-- configuration -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """What MkDocs calls for every page."""
    return markdown.replace(MARKER, configuration()) if MARKER in markdown else markdown


def configuration() -> str:
    """A heading and a table for each section of the configuration."""
    sections = [("", Config), *((name, kind) for name, kind in field_types(Config).items() if is_section(kind))]
    return "\n\n".join(f"## {prefix or 'Run'}\n\n{about(kind)}\n\n{table(prefix, kind)}" for prefix, kind in sections)


def about(kind: type) -> str:
    """The docstring of a section up to its list of attributes."""
    return inspect.getdoc(kind).partition("\n\nAttributes:")[0]


def table(prefix: str, kind: type) -> str:
    comments = field_comments(kind)
    lines = ["| key | values | default | meaning |", "|---|---|---|---|"]
    for name, hint in field_types(kind).items():
        if not is_section(hint):
            key = f"{prefix}.{name}" if prefix else name
            cells = [f"`{key}`", values_of(hint), default_of(get(Config(), key)), comments.get(name, "")]
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def values_of(hint: Any) -> str:
    """A field's type in a few words."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return values_of(args[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in args)
    if type(None) in args:
        return f"{values_of(next(arg for arg in args if arg is not type(None)))} or `none`"
    if origin is tuple:
        return f"list of {values_of(args[0])}"
    return {bool: "`true`, `false`", int: "whole number", float: "number", str: "text"}[hint]


def default_of(value: Any) -> str:
    if value is None:
        return "`none`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{' '.join(f'{item:.4g}' for item in value)}`" if value else "empty"
    return f"`{value}`" if value != "" else "empty"


def field_comments(kind: type) -> dict[str, str]:
    """The comment beside or above each field, or its line in the docstring's list of attributes."""
    source = textwrap.dedent(inspect.getsource(kind))
    lines = source.splitlines()
    found = dict(attributes(inspect.getdoc(kind) or ""))
    for node in ast.parse(source).body[0].body:
        if isinstance(node, ast.AnnAssign):
            above = []
            for line in reversed(lines[: node.lineno - 1]):
                if not line.strip().startswith("#"):
                    break
                above.insert(0, line.strip(" #"))
            beside = lines[node.end_lineno - 1][node.end_col_offset :].strip(" #")
            if comment := " ".join([*above, beside]).strip():
                found[node.target.id] = comment
    return found


def attributes(docstring: str) -> Iterator[tuple[str, str]]:
    """Names and texts of a docstring's list of attributes."""
    _, _, block = docstring.partition("Attributes:\n")
    for entry in textwrap.dedent(block.partition("\n\n")[0]).split("\n"):
        if entry and not entry.startswith(" "):
            names, _, text = entry.partition(": ")
            last = names.split(", ")
        elif entry:
            text = f"{text} {entry.strip()}"
        else:
            continue
        yield from ((name, text) for name in last)
