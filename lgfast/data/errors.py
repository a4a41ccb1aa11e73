"""Words of the messages about files and classes."""

from collections.abc import Sequence

MAX_NAMED = 3  # examples in one message


def one_line(error: BaseException) -> str:
    """The text of an error that a reader did not foresee, in a line; its type where it has none."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def some(names: Sequence[object]) -> str:
    """The first few names."""
    return "; ".join(map(str, names[:MAX_NAMED])) + ("; ..." if len(names) > MAX_NAMED else "")
