"""Make text of unknown origin printable."""

from __future__ import annotations


def printable(text: str) -> str:
    """Put text on one line, and escape characters that would control a terminal as Python does, e.g. \\x1b."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
