"""Fetching official files: whole and of the published content, or an error that says what to do by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from lgfast.data.errors import one_line
from lgfast.runtime.locks import Waiting, file_lock


class Remote(NamedTuple):
    """A published file."""

    url: str
    md5: str
    is_archive: bool

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


def fetch_missing(name: str, folder: Path, remotes: list[Remote], is_missing: Callable[[], bool], by_hand: str) -> None:
    """Download `remotes` into `folder`, archives unpacked, while one process of several does it, if `is_missing()`.

    Args:
        by_hand: what the user can do instead.
    Raises:
        OSError: in one line, with dataset, address and `by_hand`.
    """
    if not is_missing():
        return
    with file_lock(folder / f".{name}.lock", Waiting(f"downloads {name} into {folder}")):
        if is_missing():  # still: another process may have fetched them meanwhile
            for remote in remotes:
                fetch(name, folder, remote, by_hand)


def fetch(name: str, folder: Path, remote: Remote, by_hand: str) -> None:
    from torchvision.datasets import utils

    get = utils.download_and_extract_archive if remote.is_archive else utils.download_url
    try:
        get(remote.url, str(folder), md5=remote.md5)
    except Exception as error:  # of the network, of the disk, of a damaged archive
        is_other = isinstance(error, RuntimeError)
        if is_other:
            (folder / remote.name).unlink(missing_ok=True)
        reason = "what came is not the published file, its md5 differs" if is_other else one_line(error)
        raise OSError(f"{name}: cannot download {remote.url} ({reason}); check the network, or {by_hand}") from error
