"""Render pages from the templates beside this file; text is escaped where it enters a page."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES = Path(__file__).with_name("templates")


def render(template: str, **values: Any) -> str:
    loader = FileSystemLoader(TEMPLATES)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["embedded"] = embedded
    return environment.get_template(template).render(**values)


def embedded(picture: Path) -> str:
    """Return a data: address that holds the PNG."""
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
