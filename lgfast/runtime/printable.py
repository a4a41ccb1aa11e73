"""Text of unknown origin, as it may be printed."""

from __future__ import annotations


def printable(text: str) -> str:
    """On one line, and without what would steer a terminal: such characters as Python writes them, e.g. \\x1b."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
