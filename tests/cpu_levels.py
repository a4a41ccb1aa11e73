"""Runs lgfast's CPU kernels at each level of instructions that they may use here."""

import importlib
from contextlib import contextmanager

from lgfast import _extension

ALL = _extension.cpu_levels()
LEVELS = ALL[: ALL.index(_extension.cpu_level()) + 1] if ALL else ()  # up to the one that the environment holds to
FLOAT_LEVELS = tuple(level for level in LEVELS if level != "avx512_bf16")  # which multiply bfloat16 as float32


@contextmanager
def held_to(level: str):
    """The CPU kernels use `level`, then again what they used before."""
    native, before = importlib.import_module("lgfast._C"), _extension.cpu_level()
    native.hold_cpu_level(level)
    try:
        yield
    finally:
        native.hold_cpu_level(before)
