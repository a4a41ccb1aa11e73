"""Read paths as users write them."""

from __future__ import annotations

import os
from pathlib import Path


def user_path(path: str | os.PathLike[str]) -> Path:
    """Expand a leading ~ or ~name of a path.

    Raises:
        ValueError: the system does not know the user's home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"{path}: there is no home folder to put in place of ~; write the path in full") from None


def cache_home() -> Path:
    """Return the folder of what lgfast makes once for all runs: $LGFAST_CACHE, else ~/.cache/lgfast.

    Raises:
        ValueError: LGFAST_CACHE is not set, and the user has no home folder.
    """
    if named := os.environ.get("LGFAST_CACHE"):
        return user_path(named)
    try:
        return Path.home() / ".cache" / "lgfast"
    except RuntimeError:
        raise ValueError("this user has no home folder for lgfast's cache; set LGFAST_CACHE to a folder") from None
