"""Choose the device and the precision of a run."""

from __future__ import annotations

import dataclasses

import torch

from lgfast import _extension
from lgfast.config import Config
from lgfast.runtime import ranks
from lgfast.runtime.auto_precision import auto_precision


def resolve_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cpu":
        return device
    if not torch.cuda.is_available():
        raise ValueError(f"device: {name} was asked for, but torch sees no CUDA device; use --device cpu")
    if ranks.was_launched_by_torchrun() and device.index is None:
        device = torch.device("cuda", ranks.local_rank())
    if device.index is not None:
        if device.index >= (count := torch.cuda.device_count()):
            raise ValueError(f"device: {device} was asked for, but torch sees {count} CUDA devices, from cuda:0 on")
        torch.cuda.set_device(device)  # streams and graphs are made on the current device
    _extension.warn_of_missing_kernels(device)
    return device


def resolve_precision(config: Config) -> Config:
    """Resolve `precision=auto`: bf16 where it is faster on the configured device, else fp32. A run keeps it."""
    if config.precision != "auto":
        return config
    return dataclasses.replace(config, precision=auto_precision(resolve_device(config.device)))
