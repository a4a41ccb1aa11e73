"""Weights of another model as a start: position embeddings and patches are resized, a head of other classes is new."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import huggingface_hub
import timm
import torch
from huggingface_hub.errors import EntryNotFoundError
from timm.layers import resample_abs_pos_embed
from timm.models import PretrainedCfg, adapt_input_conv, get_pretrained_cfg, is_model_pretrained
from torch import Tensor, nn
from torch.nn import functional as F

HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # a model's weights, in the order in which timm looks
HUB_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Start:
    """Which of the given weights a model took, and which not.

    Attributes:
        resized: names of the position embeddings and patches that were resized.
        new: names of the head's parameters that keep their initial values.
    """

    resized: tuple[str, ...]
    new: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{', '.join(self.resized)} resized"] if self.resized else []
        return "; ".join([*parts, *(["a new head"] if self.new else [])]) or "every tensor as it is"


def start_from(model: nn.Module, weights: Mapping[str, Tensor], keep_head: bool = True) -> Start:
    """Copy weights into a model of the same kind, which may have another image size, patch or number of classes.

    Position embeddings are resized as timm does (bicubic, antialiased; prefix tokens as they are), patches by timm's
    own filter of the model where it has one. A first convolution for RGB is fitted to other channels as timm does.

    Args:
        model: takes the weights.
        weights: a state dict under timm's names.
        keep_head: take the classifier too, where it has as many classes.
    Raises:
        ValueError: a tensor is missing, is not part of the model, has a shape that cannot be resized, or holds no
            finite numbers; the model is then as it was.
    """
    check_values(weights)
    own, head = model.state_dict(), head_names(model)
    found = filtered(model, {name: tensor.detach() for name, tensor in weights.items()})
    resized = {
        name: resize(name, tensor, own[name]) for name, tensor in found.items() if must_resize(name, tensor, own)
    }
    adapted = {
        name: first_layer(found[name], own[name]) for name in first_layers(model) if takes_other(name, found, own)
    }
    found |= resized | adapted
    is_head_new = not keep_head or any(name not in found or found[name].shape != own[name].shape for name in head)
    new = head if is_head_new else set()
    found = {name: tensor for name, tensor in found.items() if name not in new and not is_other_head(name, head)}
    check_fit(found, own, new)
    model.load_state_dict(found, strict=False)
    changed = [name for name, tensor in weights.items() if name in found and tensor.shape != found[name].shape]
    return Start(tuple(changed), tuple(sorted(new)))


def pretrained_weights(name: str) -> dict[str, Tensor]:
    """timm's trained weights of a model, from the cache of the Hugging Face hub or, with a network, from the hub.

    Raises:
        ValueError: timm has none, or they cannot be had.
    """
    if not is_model_pretrained(name):
        raise ValueError(f"model.pretrained: timm has no trained weights of {name}; use model.init_from=FILE")
    try:
        found = hub_file(get_pretrained_cfg(name))
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=found).state_dict()
    except Exception as error:  # of a network, a cache or a download
        raise ValueError(
            f"model.pretrained: cannot get timm's weights of {name}: {' '.join(str(error).split())[:300]}; fetch them "
            "where there is a network (HF_HOME names the cache), or use model.init_from=FILE"
        ) from error


def hub_file(stated: PretrainedCfg | None) -> dict[str, str]:
    """Return where timm is to read weights: {"file": path} if the hub's cache holds them; {} if timm is to fetch them.

    timm asks the hub about cached files too, and without a network it waits most of a minute for files that it lacks.
    This function asks at most once.

    Raises:
        ConnectionError: the file is not in the cache, and the hub does not give it.
    """
    if stated is None or not stated.hf_hub_id or stated.custom_load:
        return {}
    repository, _, revision = stated.hf_hub_id.partition("@")
    names = [stated.hf_hub_filename] if stated.hf_hub_filename else HUB_FILES
    for name in names:
        path = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision or None)
        if isinstance(path, str):
            return {"file": path}
    try:
        url = huggingface_hub.hf_hub_url(repository, names[0], revision=revision or None)
        huggingface_hub.get_hf_file_metadata(url, timeout=HUB_TIMEOUT_S)
    except EntryNotFoundError:
        pass
    except Exception as error:  # of a network, or of the hub
        raise ConnectionError(
            f"{names[0]} of {repository} is not in the cache, and the hub does not give it ({error})"
        ) from error
    return {}


def head_names(model: nn.Module) -> set[str]:
    """Names of the parameters of a model's classifiers."""
    stated = getattr(model, "pretrained_cfg", None) or {}
    names: str | Sequence[str] = stated.get("classifier") or "head"
    prefixes = tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))
    return {name for name in model.state_dict() if name.startswith(prefixes)}


def is_other_head(name: str, head: set[str]) -> bool:
    """A second classifier of the source, as that of a distillation token, which the model lacks."""
    return name.startswith("head_dist.") and name not in head


def filtered(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights after the filter of the model's timm module, which fits other shapes and older names."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    return dict(weights) if convert is None else dict(convert(weights, model))


def first_layers(model: nn.Module) -> list[str]:
    """Return the names of the weights that read the images."""
    stated = (getattr(model, "pretrained_cfg", None) or {}).get("first_conv") or ()
    return [f"{name}.weight" for name in ([stated] if isinstance(stated, str) else stated)]


def takes_other(name: str, found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    """Whether a first convolution [D, C, h, w] reads images of another number of channels."""
    if name not in found or name not in own or found[name].ndim != 4 or own[name].ndim != 4:
        return False
    return found[name].shape[1] != own[name].shape[1]


def first_layer(weight: Tensor, own: Tensor) -> Tensor:
    """Return the weight for another number of channels, as timm does: the sum for one, else repeated and scaled."""
    try:
        return adapt_input_conv(own.shape[1], weight)
    except NotImplementedError:  # timm adapts weights for three channels
        return weight  # `check_fit` names it


def must_resize(name: str, tensor: Tensor, own: Mapping[str, Tensor]) -> bool:
    return name in own and tensor.shape != own[name].shape and "pos_embed" in name.rpartition(".")[2]


def resize(name: str, positions: Tensor, own: Tensor) -> Tensor:
    """Position embeddings [1, prefix + h * w, d] or [1, d, h, w] on another grid, square where it is flat."""
    if positions.ndim == own.ndim == 4 and positions.shape[1] == own.shape[1]:
        return F.interpolate(positions, own.shape[2:], mode="bicubic", antialias=True, align_corners=False)
    (prefix, side), (own_prefix, own_side) = grid(positions), grid(own)
    if positions.ndim != 3 or positions.shape[2] != own.shape[2] or prefix != own_prefix:
        return positions  # `check_fit` names them
    return resample_abs_pos_embed(positions, [own_side, own_side], [side, side], num_prefix_tokens=prefix)


def grid(positions: Tensor) -> tuple[int, int]:
    """(prefix tokens, side of the grid) of flat position embeddings."""
    side = math.isqrt(positions.shape[1])
    return positions.shape[1] - side * side, side


def check_values(weights: Mapping[str, Tensor]) -> None:
    """Raise a ValueError for a tensor that holds no plain, finite numbers."""
    for name, tensor in weights.items():
        if tensor.is_meta or tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
            kind = "without data" if tensor.is_meta else f"{tensor.layout}, {tensor.dtype}"
            raise ValueError(f"{name} is a tensor {kind}; expected a dense one of real numbers")
        if not tensor.isfinite().all():
            raise ValueError(f"{name} holds numbers that are not finite; its training had diverged")


def check_fit(found: Mapping[str, Tensor], own: Mapping[str, Tensor], new: set[str]) -> None:
    for name, tensor in own.items():
        if name in new:
            continue
        if name not in found:
            raise ValueError(f"no tensor {name!r}, which the model needs; is it another architecture?")
        if found[name].shape != tensor.shape:
            raise ValueError(f"{name} has shape {list(found[name].shape)}, the model needs {list(tensor.shape)}")
        if found[name].is_floating_point() != tensor.is_floating_point():
            raise ValueError(f"{name} has dtype {found[name].dtype}, the model needs {tensor.dtype}")
    if extra := sorted(set(found) - set(own)):
        raise ValueError(f"tensor {extra[0]!r} is not part of the model; is it another architecture?")
