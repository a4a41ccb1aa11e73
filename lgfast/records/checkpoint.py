"""Write checkpoints whole or not at all, remove old ones, and check them when they are read.

A run keeps `checkpoints/step_00000390/{model.safetensors, resume.pt}` (the last few) and `best.safetensors`,
`last.safetensors`. Weights are safetensors with the configuration, class names and accuracy in their header;
`resume.pt` holds everything else that an exact continuation needs. The header of a weights file holds the digest of
the file's content, and that of a checkpoint's weights the digest of its `resume.pt`. Files without one, of older
versions, are read unchecked.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lgfast.data.read import UnreadableError, read_file
from lgfast.records.files import atomic_path

HEADER, DIGEST, STATE_DIGEST = "lgfast", "lgfast_digest", "lgfast_state_digest"  # entries in a weights file's header


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged or does not fit; the message names the file and the fix."""


def save_weights(path: Path, state: Mapping[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write a state dict as safetensors, with `metadata` as JSON in the header."""
    with atomic_path(path) as temporary:
        write_weights(temporary, state, metadata)


def write_weights(path: Path, state: Mapping[str, Tensor], metadata: dict[str, Any], **entries: str) -> None:
    """Write tensors as safetensors, whole or not at all.

    Args:
        entries: further entries of the header.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    header = {HEADER: json.dumps(metadata)} | entries
    try:
        path.touch()  # the umask gives the mode; safetensors would let only the owner read it
        mode = path.stat().st_mode
        save_file(tensors, str(path), metadata=header | {DIGEST: weights_digest(tensors, header)})
        path.chmod(mode)
    except SafetensorError as error:  # safetensors has its own type for I/O failures
        raise OSError(str(error)) from error


def weights_digest(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    """Return the digest of a weights file's content, without the digest itself."""
    total = blake2b(json.dumps(dict(sorted(header.items()))).encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        total.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Call torch.save; raise an OSError where the disk fails. torch raises a RuntimeError without the reason."""
    try:
        with path.open("wb") as file:
            torch.save(state, file)
    except RuntimeError as error:
        reason: BaseException | None = error
        while reason is not None and not isinstance(reason, OSError):
            reason = reason.__context__
        raise reason or OSError(str(error).splitlines()[0]) from error


def digest_of(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the state dict and the metadata of a weights file.

    Raises:
        CheckpointError: it is missing, or damaged.
        UnreadableError: it cannot be read now, and may be sound.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        tensors, header = read_checked(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; use an older one or train again") from None
    return tensors, json.loads(header.get(HEADER, "{}"))


def read_metadata(path: Path) -> dict[str, Any]:
    """Read the metadata of a weights file, without tensors and unchecked; return {} where it cannot be read."""
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get(HEADER, "{}"))
    except (SafetensorError, OSError, ValueError):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def check_finite(weights: Mapping[str, Tensor], path: Path) -> None:
    """Raise a CheckpointError where a number is infinite or none, as after a training that diverged."""
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise CheckpointError(
                f"{path}: {name} holds numbers that are not finite: its training had diverged, or the file is damaged; "
                "use an older checkpoint or train again"
            )


def is_names(value: Any) -> TypeGuard[list[str]]:
    """Whether this is a list of class names, as a weights file has it."""
    return isinstance(value, list) and len(value) > 0 and all(isinstance(name, str) for name in value)


def read_checked(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and header of a weights file, and check that its content is what was written.

    Raises:
        CheckpointError: it is damaged.
        UnreadableError: it cannot be read now, and may be sound.
    """
    try:
        read_file(path)  # raises where the disk fails; in safe_open's memory map, a signal would end the process
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        check_digest(tensors, header)
        json.loads(header.get(HEADER, "{}"))
    except UnreadableError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a complete checkpoint ({error})") from None
    return tensors, header


def check_digest(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Raise a ValueError where the file is not as it was written. Files without a digest, of other programs or older
    versions, pass."""
    if {name for name in header if name.startswith(HEADER)} <= {HEADER}:
        return
    said = {name: text for name, text in header.items() if name != DIGEST}
    if header.get(DIGEST) != weights_digest(tensors, said):
        raise ValueError("its content does not match its digest")


def load_weights(model: nn.Module, state: dict[str, Tensor], source: Path | str) -> None:
    """Copy a state dict into the model. Every name and shape must fit; the error names the first that does not."""
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
        keep: the number of newest checkpoints that stay on disk.
    """

    def __init__(self, run_dir: Path, keep: int = 2) -> None:
        self.folder, self.keep = run_dir / "checkpoints", keep

    def all(self) -> list[Path]:
        return sorted(self.folder.glob("step_*"))

    def path(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}"

    def save(self, step: int, model: nn.Module, metadata: dict[str, Any], state: dict[str, Any]) -> Path:
        """Write one checkpoint whole, then remove the oldest beyond `keep`. A checkpoint of the same step stays as it
        is."""
        path = self.path(step)
        if path.is_dir():
            return path
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(path, is_folder=True) as temporary:
            write_state(temporary / "resume.pt", state)
            digest = {STATE_DIGEST: digest_of((temporary / "resume.pt").read_bytes())}
            write_weights(temporary / "model.safetensors", model.state_dict(), metadata, **digest)
        for old in self.all()[: -self.keep]:
            shutil.rmtree(old)
        return path

    def load_newest(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Load weights and resume state of the newest checkpoint; return None if there is none.

        Raises:
            CheckpointError: it is damaged.
            UnreadableError: it cannot be read now, and may be sound.
        """
        paths = self.all()
        if not paths:
            return None
        way_on = f"delete {paths[-1]} to " + ("resume from an earlier one" if len(paths) > 1 else "start anew")
        try:
            weights, header = read_checked(paths[-1] / "model.safetensors")
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {way_on}") from None
        path = paths[-1] / "resume.pt"
        try:
            content = read_file(path)
            if header.get(STATE_DIGEST, expected := digest_of(content)) != expected:
                raise ValueError("its content does not match its digest")
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except UnreadableError:
            raise
        except Exception as error:
            raise CheckpointError(f"{path} cannot be read ({error}); {way_on}") from None
        return weights, state


def find_weights(path: Path | str) -> Path:
    """Find the weights file of a run folder (its best epoch's) or of a checkpoint folder; a file is returned itself.

    Raises:
        CheckpointError: there is none. The last epoch's weights never replace the best's, as they are another result.
    """
    path = Path(path)
    for candidate in (path / "best.safetensors", path / "model.safetensors", path):
        if candidate.is_file():
            return candidate
    if (path / "last.safetensors").is_file():
        raise CheckpointError(
            f"{path} has lost its best.safetensors; train it again, or name {path / 'last.safetensors'} to use the "
            "weights of its last epoch"
        )
    raise CheckpointError(f"no checkpoint at {path}: expected a run folder, a checkpoint folder or a .safetensors file")
