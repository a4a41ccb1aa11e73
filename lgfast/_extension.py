"""Loads the native libraries once; without them, defines the same ops in PyTorch."""

import importlib
import os
import re
from collections.abc import Callable
from pathlib import Path

import torch

from lgfast._native import VARIANTS, missing_reason, switched_off

_PACKAGE = Path(__file__).parent
_python_library = torch.library.Library("lgfast", "FRAGMENT")  # holds what Python registers; lives with the process


def _schemas() -> list[str]:
    return re.findall(r'^"(.*)",$', (_PACKAGE / "ops" / "schemas.inc").read_text(), flags=re.MULTILINE)


def _names(op_name: str) -> tuple[str, str]:
    """What LGFAST_DISABLE calls an operation: one pass, or both; the packed form goes with the other."""
    name = op_name.replace("_qkvpacked", "")
    return name, name.removesuffix("_fwd").removesuffix("_bwd")


def _check_switches() -> None:
    known = {name for schema in _schemas() for name in _names(schema.partition("(")[0])} | set(VARIANTS)
    if unknown := sorted(set(switched_off()) - known):
        raise ValueError(f"LGFAST_DISABLE: unknown kernel {unknown[0]!r}; known: {', '.join(sorted(known))}")


def is_switched_off(op_name: str) -> bool:
    """Whether LGFAST_DISABLE names the CUDA kernel of an operation, such as short_attention_bwd, or of both passes."""
    return not set(_names(op_name)).isdisjoint(switched_off())


def _check_up_to_date() -> None:
    """The built library must know every operation of the sources, which may be newer in a checkout."""
    for schema in _schemas():
        name = schema.partition("(")[0]
        if not hasattr(torch.ops.lgfast, name):
            raise ImportError(
                f"lgfast._C is older than the sources: it has no operation {name}; build again "
                "(python setup.py build_ext --inplace, or pip install .)"
            )


def _load() -> tuple[bool, bool]:
    """(native ops loaded, CUDA kernels loaded)."""
    _check_switches()
    if missing_reason():
        for schema in _schemas():
            _python_library.define(schema)
        return False, False
    importlib.import_module("lgfast._C")
    _check_up_to_date()
    # Loaded whenever torch itself has CUDA; the library does not touch the driver before its first kernel.
    cuda_library = _PACKAGE / "_cuda.so"
    if torch.version.cuda is None or not cuda_library.exists():
        return True, False
    torch.ops.load_library(cuda_library)
    return True, True


def _hold_cpu_level() -> None:
    """Hold the CPU kernels to the level of instructions that LGFAST_CPU_LEVEL names."""
    level, levels = os.environ.get("LGFAST_CPU_LEVEL"), cpu_levels()
    if not level or not levels:
        return
    if level not in levels:
        raise ValueError(
            f"LGFAST_CPU_LEVEL must be one of {', '.join(levels)}, which this processor and build have, got {level!r}; "
            "unset it for the highest"
        )
    importlib.import_module("lgfast._C").hold_cpu_level(level)


_has_native, _has_cuda_kernels = _load()


def has_native() -> bool:
    """Whether lgfast._C (schemas and CPU kernels in C++) is in use."""
    return _has_native


def has_cuda_kernels() -> bool:
    """Whether lgfast._cuda is loaded; needs a CUDA build of torch, not a GPU."""
    return _has_cuda_kernels


def cpu_levels() -> tuple[str, ...]:
    """Levels of instructions that the CPU kernels can use on this processor, the lowest first; () without them."""
    return tuple(importlib.import_module("lgfast._C").cpu_levels()) if _has_native else ()


def cpu_level() -> str:
    """The level that the CPU kernels use: the highest, or what LGFAST_CPU_LEVEL says; "" without them."""
    return importlib.import_module("lgfast._C").cpu_level() if _has_native else ""


def build_info() -> dict[str, str]:
    """What the native library was built with; empty in pure-Python mode."""
    return dict(importlib.import_module("lgfast._C").build_info()) if _has_native else {}


def _architectures() -> tuple[tuple[int, int, str, str], ...]:
    """(major, minor, suffix, kind) of each GPU architecture in lgfast._cuda; kind is real (machine code) or virtual."""
    found = re.findall(r"(\d+)(\d)([af]?)-(real|virtual)", build_info().get("cuda_archs", ""))
    return tuple((int(major), int(minor), suffix, kind) for major, minor, suffix, kind in found)


_cuda_architectures = _architectures()
_hold_cpu_level()


def unserved_gpu_reason(capability: tuple[int, int]) -> str | None:
    """Why the CUDA kernels cannot run on a GPU of this compute capability, with the fix, or None where they can.

    Machine code runs on later minor versions, with suffix a on its own alone; PTX on everything later.
    """
    major, minor = capability
    for built_major, built_minor, suffix, kind in _cuda_architectures:
        same_family = built_major == major and built_minor <= minor
        if kind == "virtual" and (same_family or built_major < major):
            return None
        if kind == "real" and same_family and (suffix != "a" or built_minor == minor):
            return None
    built = ", ".join(f"{arch[0]}.{arch[1]}{arch[2]}" for arch in _cuda_architectures)
    return (
        f"lgfast's CUDA kernels were built for {built}, which a GPU of compute capability {major}.{minor} cannot run; "
        f"build again with TORCH_CUDA_ARCH_LIST={major}.{minor}"
    )


def refusal(error: RuntimeError) -> str | None:
    """What an argument check of a native operation said when it raised `error`; None for any other error."""
    found = re.search(r"lgfast::\w+: .*", str(error))
    return found and found[0]


def register_reference(op_name: str, reference: Callable, native: tuple[str, ...] = ("CPU", "CUDA")) -> None:
    """Make `reference` the kernel of `lgfast::op_name` on every device without a native one that is to be used.

    native: the devices that csrc/ has a kernel for.
    """
    loaded = {"CPU": _has_native, "CUDA": _has_cuda_kernels and not is_switched_off(op_name)}
    for device, is_loaded in loaded.items():
        if not is_loaded or device not in native:
            _python_library.impl(op_name, reference, device)
