"""Decide whether to use the native libraries, without torch.

LGFAST_NATIVE=off at run time ignores libraries that are built. LGFAST_DISABLE switches CUDA kernels off, to go on
without one that fails on some GPU. It lists names of operations, such as `short_attention_bwd,augment`, which then run
without their kernel, or of variants, which another kernel replaces.
"""

import importlib.util
import os

# Operations with kernels on the CPU only; without these the function of their name runs its composition.
CPU_ONLY = ("vit_block",)
# Kernels that another one can replace; csrc knows these names.
VARIANTS = (
    "short_attention_bwd_resident",
    "short_attention_bwd_wgmma",
    "short_attention_fwd_wgmma",
    "feature_mse_last_block",
)


def switched_off() -> tuple[str, ...]:
    """Return the names of the CUDA kernels in LGFAST_DISABLE."""
    return tuple(filter(None, os.environ.get("LGFAST_DISABLE", "").split(",")))


def missing_reason() -> str | None:
    """Return why the native libraries cannot be used, or None."""
    if os.environ.get("LGFAST_NATIVE", "auto") == "off":
        return "LGFAST_NATIVE=off"
    if importlib.util.find_spec("lgfast._C") is None:
        return "lgfast._C is not built; `pip install .` or `python setup.py build_ext --inplace` with a C++ compiler"
    return None
