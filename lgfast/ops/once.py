"""Warnings that a process sees once."""

import functools
import warnings

import torch


def warn_once(message: str) -> None:
    """Warn in the name of whoever called the caller; not while PyTorch traces."""
    if not torch.compiler.is_compiling():
        _warn(message)


@functools.cache
def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=4)
