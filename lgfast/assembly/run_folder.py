"""The folder of a run: one process at a time, its configuration and environment, and where it is continued from."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lgfast.config import FREE_ON_RESUME, Config, replace
from lgfast.records.files import remove_leftovers, write_text
from lgfast.records.run_config import FILE, read_config, write_config
from lgfast.runtime import ranks
from lgfast.runtime.environment import describe_environment
from lgfast.runtime.locks import file_lock
from lgfast.runtime.paths import user_path

LOCK, ENVIRONMENT = "run.lock", "environment.json"


@contextlib.contextmanager
def run_folder(config: Config, resume: bool) -> Iterator[Path]:
    """The run's folder, with its configuration and environment, for this process alone.

    Raises:
        ValueError: it holds another run, or another process is at work in it.
    """
    mark = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}" if ranks.world() == 1 else ranks.run_name()
    run_dir = user_path(config.run_dir or f"runs/{config.name}-{mark}")
    if not resume and (run_dir / FILE).exists():
        raise ValueError(
            f"run_dir: {run_dir} already holds a run; continue it with --resume {run_dir}, or name another"
        )
    ranks.barrier()
    with for_this_process(run_dir) if ranks.is_writer() else contextlib.nullcontext():
        if ranks.is_writer():
            for folder in (run_dir, run_dir / "checkpoints"):
                remove_leftovers(folder)
            write_config(run_dir, dataclasses.replace(config, run_dir=str(run_dir)))
            write_text(run_dir / ENVIRONMENT, json.dumps(describe_environment(), indent=2) + "\n")
        yield run_dir


@contextlib.contextmanager
def for_this_process(run_dir: Path) -> Iterator[None]:
    """Within it no other process trains in the folder."""
    path = run_dir / LOCK

    def refuse() -> None:
        holder = path.read_text(errors="replace").strip()
        raise ValueError(
            f"run_dir: another process trains in {run_dir}" + (f" ({holder})" if holder else "") + "; wait for its end"
        )

    with file_lock(path, refuse):
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        yield


def forget_holder(run_dir: Path) -> None:
    """Let the folder be taken from a process that holds it but has been given up; its old name must be gone."""
    (run_dir / LOCK).unlink(missing_ok=True)


@contextlib.contextmanager
def emptied_on_failure(run_dir: Path) -> Iterator[None]:
    """A run that cannot begin, as with an impossible setting, leaves no folder in the way of the corrected one."""
    try:
        yield
    except Exception:
        if ranks.is_writer():
            for name in (FILE, ENVIRONMENT, LOCK):
                (run_dir / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty
                run_dir.rmdir()
        raise


def resume_config(run_dir: Path | str, changes: dict[str, Any]) -> Config:
    """The configuration of the run in `run_dir`; changing what the run computes is refused."""
    run_dir = user_path(run_dir)
    if not (run_dir / FILE).is_file():
        raise ValueError(f"--resume: {run_dir} is no folder of a run or a sweep (it has no config.yaml or sweep.json)")
    config = dataclasses.replace(read_config(run_dir), run_dir=str(run_dir))
    for key, value in changes.items():
        if not key.startswith(FREE_ON_RESUME) and replace(config, {key: value}) != config:
            raise ValueError(
                f"--resume: {key} cannot change in a resumed run ({run_dir} was started with another value); "
                "start a new run instead"
            )
    return replace(config, changes)
