"""Load the native libraries once; without them, define the same ops in PyTorch."""

import ctypes
import importlib
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from lgfast._native import CPU_ONLY, VARIANTS, missing_reason, switched_off

FIRST_CAPABILITY = (7, 5)  # the oldest GPUs that csrc/ compiles for
_PACKAGE = Path(__file__).parent
_python_library = torch.library.Library("lgfast", "FRAGMENT")  # holds what Python registers; lives with the process


def _schemas() -> list[str]:
    return re.findall(r'^"(.*)",$', (_PACKAGE / "ops" / "schemas.inc").read_text(), flags=re.MULTILINE)


def _names(op_name: str) -> tuple[str, str]:
    """Return the names by which LGFAST_DISABLE switches an operation off: its pass or both, packed and plain alike."""
    name = op_name.replace("_qkvpacked", "")
    return name, name.removesuffix("_fwd").removesuffix("_bwd")


def cuda_op_names() -> list[str]:
    """Return the schemas' names of the operations that have CUDA kernels."""
    names = [schema.partition("(")[0] for schema in _schemas()]
    return [name for name in names if set(_names(name)).isdisjoint(CPU_ONLY)]


def _check_switches() -> None:
    known = {name for op_name in cuda_op_names() for name in _names(op_name)} | set(VARIANTS)
    if unknown := sorted(set(switched_off()) - known):
        raise ValueError(f"LGFAST_DISABLE: unknown kernel {unknown[0]!r}; known: {', '.join(sorted(known))}")


def is_switched_off(op_name: str) -> bool:
    """Whether LGFAST_DISABLE names the CUDA kernel of an operation, such as short_attention_bwd, or of both passes."""
    return not set(_names(op_name)).isdisjoint(switched_off())


def _check_up_to_date() -> None:
    """Raise where the library lacks an operation of the sources, which may be newer in a checkout, or has another."""
    for schema in _schemas():
        name = schema.partition("(")[0]
        operation = getattr(torch.ops.lgfast, name, None)
        expected = torch._C.parse_schema(f"lgfast::{schema}")
        if operation is None or operation.default._schema != expected:
            fault = f"has no operation {name}" if operation is None else f"has another operation {name}"
            raise ImportError(
                f"lgfast._C is older than the sources: it {fault}; build again "
                "(python setup.py build_ext --inplace, or pip install .)"
            )


def _load() -> tuple[bool, bool, dict[str, str]]:
    """Return whether native ops are loaded, whether CUDA kernels are, and what both were built with."""
    _check_switches()
    if missing_reason():
        for schema in _schemas():
            _python_library.define(schema)
        return False, False, {}
    info = dict(importlib.import_module("lgfast._C").build_info())
    _check_up_to_date()
    # Loaded whenever torch itself has CUDA; the library does not touch the driver before its first kernel.
    cuda_library = _PACKAGE / "_cuda.so"
    if torch.version.cuda is None or not cuda_library.exists():
        return True, False, info
    torch.ops.load_library(cuda_library)
    return True, True, info | _cuda_build_info(cuda_library)


def _cuda_build_info(path: Path) -> dict[str, str]:
    """Ask lgfast._cuda for its compiler and its GPUs' architectures; it may come from another build than lgfast._C."""
    library, info = ctypes.CDLL(str(path)), {}
    for name in ("cuda_compiler", "cuda_archs"):
        say = getattr(library, f"lgfast_{name}", None)  # None: an older build, which does not tell
        if say is not None:
            say.restype = ctypes.c_char_p
            info[name] = say().decode()
    return info


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


_has_native, _has_cuda_kernels, _build_info = _load()


def has_native() -> bool:
    """Whether lgfast._C (schemas and CPU kernels in C++) is in use."""
    return _has_native


def has_cuda_kernels() -> bool:
    """Whether lgfast._cuda is loaded; needs a CUDA build of torch, not a GPU."""
    return _has_cuda_kernels


def cpu_levels() -> tuple[str, ...]:
    """Return the levels of instructions that the CPU kernels can use on this processor, the lowest first; () without
    them."""
    return tuple(importlib.import_module("lgfast._C").cpu_levels()) if _has_native else ()


def cpu_level() -> str:
    """Return the level that the CPU kernels use: the highest, or LGFAST_CPU_LEVEL's; "" without them."""
    return importlib.import_module("lgfast._C").cpu_level() if _has_native else ""


def build_info() -> dict[str, str]:
    """Return what the native libraries were built with; {} in pure-Python mode, only lgfast._C's without
    lgfast._cuda."""
    return dict(_build_info)


def _architectures() -> tuple[tuple[int, int, str, str], ...]:
    """Return (major, minor, suffix, kind) of each GPU architecture in lgfast._cuda; kind: real (machine code) or
    virtual."""
    found = re.findall(r"(\d+)(\d)([af]?)-(real|virtual)", build_info().get("cuda_archs", ""))
    return tuple((int(major), int(minor), suffix, kind) for major, minor, suffix, kind in found)


_cuda_architectures = _architectures()
_hold_cpu_level()


def unserved_gpu_reason(capability: tuple[int, int], first: tuple[int, int] = FIRST_CAPABILITY) -> str | None:
    """Return why CUDA kernels compiled for GPUs from `first` on cannot run on this compute capability, with the fix.

    None where they can. Machine code runs on later minor versions too, with suffix a only on its own; PTX runs on all
    later GPUs.
    """
    major, minor = capability
    if capability < first:
        return f"the GPU must be of compute capability {first[0]}.{first[1]} or later"
    if not _cuda_architectures:  # an older library does not tell
        return None
    built = [arch for arch in _cuda_architectures if arch[:2] >= first]
    for built_major, built_minor, suffix, kind in built:
        same_family = built_major == major and built_minor <= minor
        if kind == "virtual" and (same_family or built_major < major):
            return None
        if kind == "real" and same_family and (suffix != "a" or built_minor == minor):
            return None
    return (
        f"lgfast's CUDA kernels were built for {', '.join(map(_name, built or _cuda_architectures))}, "
        f"which a GPU of compute capability {major}.{minor} cannot run; "
        f"build again with TORCH_CUDA_ARCH_LIST={major}.{minor}"
    )


def _name(architecture: tuple[int, int, str, str]) -> str:
    major, minor, suffix, kind = architecture
    return f"PTX of {major}.{minor}" if kind == "virtual" else f"{major}.{minor}{suffix}"


@dataclass(frozen=True)
class _Operation:
    """What this process knows about an operation: both passes and the packed form."""

    first_capability: tuple[int, int]  # the oldest GPUs that its CUDA kernels are compiled for
    references: dict[str, Callable] = field(default_factory=dict)  # by the name of the schema
    switched_off: list[str] = field(default_factory=list)  # passes, by LGFAST_DISABLE


_operations: dict[str, _Operation] = {}


def operations() -> list[str]:
    """Return the operations; both passes and the packed form of one have one name."""
    return list(_operations)


def missing_kernel_reason(operation: str, device: torch.device) -> str | None:
    """Return why an operation (of `operations()`) has no native kernel on a device and runs in PyTorch, or None."""
    if device.type == "cpu":
        return None if has_native() else "lgfast was built without its CPU kernels"
    if device.type != "cuda":
        return f"the kernels run on CUDA and CPU, got tensors on {device.type}"
    if (reason := _missing_on_every_gpu(operation)) is not None:
        return reason
    gpu = torch.cuda.get_device_properties(device)
    return unserved_gpu_reason((gpu.major, gpu.minor), _operations[operation].first_capability)


def missing_cuda_kernel_reason(operation: str, capability: tuple[int, int]) -> str | None:
    """Return `missing_kernel_reason` for a GPU of this compute capability, which need not be at hand."""
    return _missing_on_every_gpu(operation) or unserved_gpu_reason(capability, _operations[operation].first_capability)


def _missing_on_every_gpu(operation: str) -> str | None:
    if not has_cuda_kernels():
        return "lgfast was built without its CUDA kernels"
    switched_off = _operations[operation].switched_off
    return f"LGFAST_DISABLE switches {' and '.join(switched_off)} off" if switched_off else None


def refusal(error: RuntimeError) -> str | None:
    """Return the message of a native operation's argument check that raised `error`; None for any other error."""
    found = re.search(r"lgfast::\w+: .*", str(error))
    return found and found[0]


def register_reference(op_name: str, reference: Callable, first_capability: tuple[int, int] = FIRST_CAPABILITY) -> None:
    """Make `reference` the kernel of `lgfast::op_name` on CPU and CUDA where no native one is to be used.

    first_capability: of the GPUs that the operation's CUDA kernels are compiled for.
    """
    name, operation = _names(op_name)
    known = _operations.setdefault(operation, _Operation(first_capability))
    known.references[op_name] = reference
    if is_switched_off(op_name) and name not in known.switched_off:
        known.switched_off.append(name)
    for device in ("CPU", "CUDA"):
        is_native = torch._C._dispatch_has_kernel_for_dispatch_key(f"lgfast::{op_name}", device)
        if not is_native or (device == "CUDA" and is_switched_off(op_name)):
            _python_library.impl(op_name, reference, device)


_fallback_library = torch.library.Library("lgfast", "IMPL")
_warned: set[str] = set()


def serve_visible_gpus() -> None:
    """After CUDA is initialised, let operations that lack code for a visible GPU run their references on all GPUs."""
    if _has_cuda_kernels:
        torch.cuda._lazy_call(_use_references_on_unserved_gpus)


def _use_references_on_unserved_gpus() -> None:
    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    for operation, known in _operations.items():
        if not known.switched_off and any(missing_kernel_reason(operation, device) for device in devices):
            for op_name, reference in known.references.items():
                _fallback_library.impl(op_name, reference, "CUDA")
    for device in devices:
        warn_of_missing_kernels(device)


def warn_of_missing_kernels(device: torch.device) -> None:
    """Say once in a process which operations run in PyTorch on a GPU though nobody asked for it, and why."""
    by_reason: dict[str, list[str]] = {}
    for operation, known in _operations.items():
        reason = missing_kernel_reason(operation, device)
        if has_native() and reason is not None and not known.switched_off:
            by_reason.setdefault(reason, []).append(operation)
    for reason, names in by_reason.items():
        which = "all its operations" if len(names) == len(_operations) else ", ".join(names)
        text = f"lgfast runs {which} in PyTorch on {device}, slower: {reason}"
        if text not in _warned:
            _warned.add(text)
            warnings.warn(text, stacklevel=2)
