"""Suggest names that were probably meant, for messages about unknown ones."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Return up to `count` known names: those that begin with `name`, the shortest first, then similar ones."""
    names = list(known)
    beginning = sorted((other for other in names if name and other.lower().startswith(name.lower())), key=len)
    alike = difflib.get_close_matches(name, names, n=count)
    return list(dict.fromkeys([*beginning, *alike]))[:count]


def did_you_mean(names: list[str], otherwise: str) -> str:
    """Return the end of a message: the names as a question, or `otherwise` where there is none."""
    quoted = [repr(name) for name in names]
    if not quoted:
        return otherwise
    return f"did you mean {', '.join(quoted[:-1])}{' or ' if quoted[1:] else ''}{quoted[-1]}?"
