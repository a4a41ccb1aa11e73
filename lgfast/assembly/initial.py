"""Load the weights that a run starts from: a model's own, timm's, or those of another run or file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from timm.models import load_state_dict
from torch import Tensor, nn

from lgfast.config import Config
from lgfast.models.initial_weights import Start, pretrained_weights, start_from
from lgfast.models.pycls_weights import convert_pycls, read_pycls
from lgfast.records.checkpoint import CheckpointError, find_weights, is_names, read_weights
from lgfast.runtime.paths import user_path


def start_model(model: nn.Module, config: Config, class_names: Sequence[str]) -> str:
    """Give a fresh model the weights that `model.pretrained` or `model.init_from` names.

    Args:
        class_names: the images' classes; a head for other classes begins anew.
    Returns:
        A line that says what was done; "" where the model keeps its own weights.
    Raises:
        ValueError: there are no such weights, or they do not fit; the message names the key.
    """
    names: Sequence[str] = ()
    if config.model.pretrained:
        weights, key, source = pretrained_weights(config.model.name), "model.pretrained", "timm's weights"
    elif config.model.init_from:
        key, source = "model.init_from", config.model.init_from
        weights, names = read_source(source, config.model.name)
    else:
        return ""
    try:
        start: Start = start_from(model, weights, keep_head=not names or list(names) == list(class_names))
    except ValueError as error:
        raise ValueError(f"{key}: {source}: {error}") from error
    return f"{config.model.name} starts from {source}: {start}"


def read_source(source: str, model_name: str) -> tuple[dict[str, Tensor], Sequence[str]]:
    """Return a state dict under timm's names, and the names of its classes where the file has them.

    Args:
        source: a run folder, checkpoint folder, .safetensors of lgfast or timm, `.pyth` of the paper's code, or a
            state dict that torch wrote (.pt, .pth, .bin).
    """
    path = user_path(source)
    try:
        if path.suffix == ".pyth":
            return dict(convert_pycls(read_pycls(path).state, model_name)), []
        if path.is_file() and path.suffix != ".safetensors":
            return read_torch(path), []
        weights, header = read_weights(find_weights(path))
    except CheckpointError as error:
        raise ValueError(f"model.init_from: {error}") from error
    names = header.get("class_names") if isinstance(header, dict) else None
    return weights, names if is_names(names) else []


def read_torch(path: Path) -> dict[str, Tensor]:
    """Read a state dict, alone or within a checkpoint, without running code from the file."""
    try:
        weights = load_state_dict(str(path), use_ema=False, weights_only=True)
    except Exception as error:  # a pickle's, a zip archive's or a tensor's
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"model.init_from: {path} is no state dict that torch wrote ({reason})") from error
    if not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"model.init_from: {path} holds more than tensors; save the model's state_dict() alone")
    return dict(weights)
