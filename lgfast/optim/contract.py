"""Check which settings of torch.optim.AdamW and which parameters FlatAdamW takes; refuse others by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

STATE = ("step", "exp_avg", "exp_avg_sq")  # of each parameter
_REFUSED = {
    "amsgrad": "it needs a third moment",
    "differentiable": "its update is not differentiated",
}


def check_groups(groups: Sequence[Mapping[str, Any]]) -> None:
    """Check that FlatAdamW can train these groups as torch.optim.AdamW does.

    Raises:
        ValueError: a number is missing or out of its range, a switch asks for what it cannot do, or a parameter is of a
            kind that cannot become a view of one float32 buffer.
    """
    for number, group in enumerate(groups):
        _check_numbers(f"FlatAdamW: group {number}", group)
    _check_parameters([p for group in groups for p in group["params"]])


def check_state(state: Mapping[Tensor, Mapping[str, Any]]) -> None:
    """Check that the state of each parameter is AdamW's.

    Raises:
        ValueError: a part is missing, or is not of its parameter's shape.
    """
    for p, part in state.items():
        if not part:
            continue
        missing = [name for name in STATE if name not in part]
        if missing:
            raise ValueError(
                f"FlatAdamW: the state of a parameter must hold {', '.join(STATE)}, got {', '.join(map(str, part))}; "
                "load the state of a FlatAdamW or torch.optim.AdamW"
            )
        for name in STATE[1:]:
            if part[name].shape != p.shape:
                raise ValueError(
                    f"FlatAdamW: {name} must be {list(p.shape)} like its parameter, got {list(part[name].shape)}; "
                    "load the state of an optimizer of the same parameters in the same order"
                )


def _check_numbers(where: str, group: Mapping[str, Any]) -> None:
    missing = [name for name in ("lr", "betas", "eps", "weight_decay") if name not in group]
    if missing:
        raise ValueError(f"{where} has no {', '.join(missing)}; load the state of a FlatAdamW or torch.optim.AdamW")
    for name in ("lr", "weight_decay", "eps"):
        if not group[name] >= 0:
            raise ValueError(f"{where}: {name} must be at least 0, got {group[name]}")
    if len(group["betas"]) != 2 or not all(0 <= beta < 1 for beta in group["betas"]):
        raise ValueError(f"{where}: betas must be two numbers in [0, 1), got {group['betas']}")
    for name, reason in _REFUSED.items():
        if group.get(name):
            raise ValueError(f"{where}: {name}={group[name]} is not supported ({reason}); use torch.optim.AdamW")


def _check_parameters(parameters: Sequence[Tensor]) -> None:
    for p in parameters:
        if type(p) not in (Tensor, nn.Parameter):
            raise ValueError(
                f"FlatAdamW: parameters must be plain tensors, got {type(p).__name__}; use torch.optim.AdamW for others"
            )
        if p.dtype != torch.float32 or not p.is_contiguous() or p.device != parameters[0].device:
            layout = "" if p.is_contiguous() else "not contiguous "
            raise ValueError(
                "FlatAdamW: parameters must be contiguous float32 on one device, got "
                f"{list(p.shape)} {layout}{p.dtype} on {p.device}; use torch.optim.AdamW for others"
            )
    spans = sorted((p.untyped_storage()._cdata, p.storage_offset(), p.numel()) for p in parameters if p.numel())
    for (storage, offset, numel), (next_storage, next_offset, _) in pairwise(spans):
        if storage == next_storage and next_offset < offset + numel:
            raise ValueError(
                "FlatAdamW: every parameter must have memory of its own, got two that share some; list each once, "
                "or use torch.optim.AdamW"
            )
