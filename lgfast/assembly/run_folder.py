"""Open the folder of a run for one process at a time, with its configuration and environment, and continue it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from lgfast.config import FREE_ON_RESUME, Config, replace
from lgfast.records.files import WriteError, remove_leftovers, write_text
from lgfast.records.run_config import FILE, read_config, write_config
from lgfast.records.run_log import METRICS
from lgfast.runtime import ranks
from lgfast.runtime.environment import describe_environment
from lgfast.runtime.locks import file_lock
from lgfast.runtime.paths import user_path

LOCK, ENVIRONMENT = "run.lock", "environment.json"


def check_run_folder(config: Config, resume: bool) -> None:
    """Refuse what `run_folder` would refuse, before a teacher is trained for the run. Nothing is made.

    Raises:
        ValueError: the folder holds another run, or nothing can be written there.
    """
    run_dir = user_path(config.run_dir or "runs")
    if config.run_dir and not resume:
        refuse_earlier_run(run_dir)
    place = next(path for path in (run_dir, *run_dir.absolute().parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise ValueError(
            f"run_dir: cannot write {run_dir}: {place}: {error.strerror}; name a folder that can be written"
        ) from None


def refuse_earlier_run(run_dir: Path) -> None:
    if (run_dir / FILE).exists():
        raise ValueError(
            f"run_dir: {run_dir} already holds a run; continue it with --resume {run_dir}, or name another"
        )


@contextlib.contextmanager
def run_folder(config: Config, resume: bool) -> Iterator[Path]:
    """Open the run's folder for this process alone, and write its configuration and environment.

    A new run that fails before its first result removes its folder, so that the corrected command can use the name.

    Raises:
        ValueError: the folder holds another run, or another process works in it.
    """
    mark = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}" if ranks.world() == 1 else ranks.run_name()
    run_dir = user_path(config.run_dir or f"runs/{config.name}-{mark}")
    if not resume:
        refuse_earlier_run(run_dir)
    ranks.barrier()
    with contextlib.ExitStack() as stack:
        if ranks.is_writer():
            earlier = set(os.listdir(run_dir)) if run_dir.is_dir() else None
            stack.enter_context(for_this_process(run_dir))
            if not resume:
                stack.enter_context(emptied_on_failure(run_dir, earlier))
            for folder in (run_dir, run_dir / "checkpoints", run_dir / "test"):
                remove_leftovers(folder)
            write_config(run_dir, dataclasses.replace(config, run_dir=str(run_dir)))
            write_text(run_dir / ENVIRONMENT, json.dumps(describe_environment(), indent=2) + "\n")
        yield run_dir


@contextlib.contextmanager
def for_this_process(run_dir: Path) -> Iterator[None]:
    """Keep other processes from training in the folder, within a `with` block."""
    run_dir.mkdir(parents=True, exist_ok=True)  # `file_lock` is silent about a folder that cannot be made
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
    """Take the folder from a process that holds it but counts as dead. The folder must have been renamed before."""
    (run_dir / LOCK).unlink(missing_ok=True)


@contextlib.contextmanager
def emptied_on_failure(run_dir: Path, earlier: Collection[str] | None) -> Iterator[None]:
    """Restore the folder where a run fails with nothing to continue from.

    After a failed write the folder stays: the run continues once there is room.

    Args:
        earlier: the names in the folder before the run; None where there was no folder.
    """
    try:
        yield
    except WriteError:
        raise
    except Exception:
        if not has_progress(run_dir):
            with contextlib.suppress(OSError):
                remove_new(run_dir, earlier)
        raise


def has_progress(run_dir: Path) -> bool:
    """Whether a run in this folder wrote a line about a step, or weights."""
    return (run_dir / METRICS).exists() or any(run_dir.glob("*.safetensors")) or any(run_dir.glob("checkpoints/*"))


def remove_new(run_dir: Path, earlier: Collection[str] | None) -> None:
    """Remove all but these names from the folder; remove the folder too where `earlier` is None."""
    if earlier is None:
        shutil.rmtree(run_dir)
        return
    for path in run_dir.iterdir():
        if path.name in earlier:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def resume_config(run_dir: Path | str, changes: dict[str, Any]) -> Config:
    """Return the configuration of the run in `run_dir` with changes; refuse those that change what the run computes."""
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
