"""Checkpoints: written whole or not at all, pruned, and checked when read back.

A run keeps `checkpoints/step_00000390/{model.safetensors, resume.pt}` (the last few) and `best.safetensors`,
`last.safetensors`. Weights are safetensors with the configuration, class names and accuracy in their header;
`resume.pt` holds everything else that an exact continuation needs.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged or does not fit; the message names the file and the fix."""


class WriteError(CheckpointError):
    """A file could not be written: a full disk, or no permission. What was written before is intact.

    Args:
        fact: which file, and why not.
        way_on: what to do, where that is known.
    """

    def __init__(self, fact: str, way_on: str = "") -> None:
        super().__init__(f"{fact}; {way_on}" if way_on else fact)
        self.fact = fact


@contextlib.contextmanager
def atomic_path(path: Path):
    """A temporary sibling to write to; renamed over `path` on success, removed on failure.

    Works for files and folders. A full disk thus never damages what was there before.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync(temporary)
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except OSError as error:
        raise WriteError(f"could not write {path}: {error.strerror or error}; what was there is intact") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file, or every file of a folder, to the disk."""
    for file in path.iterdir() if path.is_dir() else [path]:
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


def save_weights(path: Path, state: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write a state dict as safetensors, with `metadata` as JSON in the header."""
    with atomic_path(path) as temporary:
        write_weights(temporary, state, metadata)


def write_weights(path: Path, state: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    try:
        path.touch()  # with the mode that the umask gives; safetensors' own is for its owner alone
        mode = path.stat().st_mode
        save_file(tensors, str(path), metadata={"lgfast": json.dumps(metadata)})
        path.chmod(mode)
    except SafetensorError as error:  # safetensors reports I/O failures as its own type
        raise OSError(str(error)) from error


def write_state(path: Path, state: dict[str, Any]) -> None:
    """torch.save, with an OSError where the disk fails; torch reports it as a RuntimeError without the reason."""
    try:
        with path.open("wb") as file:
            torch.save(state, file)
    except RuntimeError as error:
        reason: BaseException | None = error
        while reason is not None and not isinstance(reason, OSError):
            reason = reason.__context__
        raise reason or OSError(str(error).splitlines()[0]) from error


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State dict and metadata of a weights file."""
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("lgfast", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a complete checkpoint ({error}); use an older one or train again"
        ) from None


def load_weights(model: nn.Module, state: dict[str, Tensor], source: Path | str) -> None:
    """Copy a state dict into the model; every name and shape must fit, and the first that does not is named."""
    own = model.state_dict()
    for name, tensor in own.items():
        if name not in state:
            raise CheckpointError(f"{source}: no tensor {name!r}, which the model needs; is it another architecture?")
        if state[name].shape != tensor.shape:
            hint = " (class counts differ?)" if name.startswith(("head", "fc", "classifier")) else ""
            raise CheckpointError(
                f"{source}: {name} has shape {list(state[name].shape)}, the model needs {list(tensor.shape)}{hint}"
            )
    extra = sorted(set(state) - set(own))
    if extra:
        raise CheckpointError(f"{source}: tensor {extra[0]!r} is not part of the model; is it another architecture?")
    model.load_state_dict(state)


class CheckpointStore:
    """The `checkpoints` folder of a run.

    Args:
        run_dir: the run's folder.
        keep: how many of the newest checkpoints stay on disk.
    """

    def __init__(self, run_dir: Path, keep: int = 2) -> None:
        self.folder, self.keep = run_dir / "checkpoints", keep
        for leftover in self.folder.glob(".*.tmp"):  # of a process that was killed while writing
            shutil.rmtree(leftover, ignore_errors=True)

    def all(self) -> list[Path]:
        return sorted(self.folder.glob("step_*"))

    def path(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}"

    def save(self, step: int, model: nn.Module, metadata: dict[str, Any], state: dict[str, Any]) -> Path:
        """Write one checkpoint whole, then drop the oldest beyond `keep`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.path(step)
        with atomic_path(path) as temporary:
            temporary.mkdir()
            write_weights(temporary / "model.safetensors", model.state_dict(), metadata)
            write_state(temporary / "resume.pt", state)
        for old in self.all()[: -self.keep]:
            shutil.rmtree(old)
        return path

    def load_newest(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Weights and resume state of the newest checkpoint, or None if there is none."""
        paths = self.all()
        if not paths:
            return None
        try:
            weights, _ = read_weights(paths[-1] / "model.safetensors")
        except CheckpointError as error:
            raise CheckpointError(f"{error}; delete {paths[-1]} to resume from an earlier one") from None
        try:
            state = torch.load(paths[-1] / "resume.pt", map_location="cpu", weights_only=True)
        except Exception as error:
            raise CheckpointError(f"{paths[-1] / 'resume.pt'} cannot be read ({error}); delete {paths[-1]}") from None
        return weights, state


def find_weights(path: Path | str) -> Path:
    """Weights file of a run folder (best, else last), a checkpoint folder, or the file itself."""
    path = Path(path)
    for candidate in (path / "best.safetensors", path / "last.safetensors", path / "model.safetensors"):
        if candidate.is_file():
            return candidate
    if path.is_file():
        return path
    raise CheckpointError(f"no checkpoint at {path}: expected a run folder, a checkpoint folder or a .safetensors file")
