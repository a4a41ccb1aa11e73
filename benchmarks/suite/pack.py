"""Pack the results of a call so far, so that they remain after the machine is given back."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KEPT = ("results", "logs", "tests", "state.json", "summary.txt", "switches.txt", "native.txt")


def pack(out: Path, folder: Path) -> None:
    """Write FOLDER/results.tar.gz from the suite's folder, and FOLDER/libraries.tar.gz from the libraries."""
    folder.mkdir(parents=True, exist_ok=True)
    archive(folder / "results.tar.gz", [out / name for name in KEPT], out)
    libraries = sorted((ROOT / "lgfast").glob("_*.so"))
    if libraries and is_older(folder / "libraries.tar.gz", libraries):
        archive(folder / "libraries.tar.gz", libraries, ROOT / "lgfast")


def archive(path: Path, members: list[Path], root: Path) -> None:
    """Write a compressed archive of the existing files, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    with tarfile.open(temporary, "w:gz", compresslevel=4) as file:
        for member in members:
            if member.exists():
                file.add(member, member.relative_to(root))
    os.replace(temporary, path)


def is_older(path: Path, sources: list[Path]) -> bool:
    return not path.exists() or path.stat().st_mtime < max(source.stat().st_mtime for source in sources)
