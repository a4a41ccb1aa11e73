"""Pictures as SVG that carry their numbers in their description, so that a test can compare them without drawing."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

COLORS = {"base": "#8a8f98", "guided": "#d9480f", "teacher": "#1c7ed6"}


@contextmanager
def axes(path: Path, found: Any, width: float, **subplots: Any) -> Iterator[Any]:
    """Yield the axes of a figure `width` x 3.2 inches; write it to `path`, with `found` as its description."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    style = {"svg.fonttype": "none", "svg.hashsalt": "lgfast", "font.size": 10, "axes.spines.top": False}
    with pyplot.rc_context(style | {"axes.spines.right": False, "path.simplify": True}):
        figure, made = pyplot.subplots(figsize=(width, 3.2), layout="constrained", **subplots)
        yield made
        described = {"Description": json.dumps(found, sort_keys=True), "Date": None, "Creator": "benchmarks/figure.py"}
        figure.savefig(path, metadata=described)
        pyplot.close(figure)


def shown(picture: Path) -> Any:
    """Read the numbers that a picture carries; None if it carries none."""
    text = re.search(r"<dc:description>(.*?)</dc:description>", picture.read_text(), re.DOTALL)
    return json.loads(html.unescape(text[1])) if text else None
