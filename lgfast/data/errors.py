"""Write messages about files and classes."""

from collections.abc import Sequence

MAX_NAMED = 3  # the most examples in one message


def one_line(error: BaseException) -> str:
    """Return the text of an error that a reader did not foresee, in one line; its type where it has no text."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def some(names: Sequence[object]) -> str:
    """Join the first few names."""
    return "; ".join(map(str, names[:MAX_NAMED])) + ("; ..." if len(names) > MAX_NAMED else "")
