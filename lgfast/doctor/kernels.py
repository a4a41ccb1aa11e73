"""Find which operations are native on a GPU, at hand or named, and which kernels attention uses there."""

import re
from collections.abc import Iterator, Mapping

from lgfast import _extension
from lgfast.doctor.finding import BUILD, Finding
from lgfast.doctor.gpus import GPUS, STUDENT_ATTENTIONS, attention_kernels


def parse_capability(text: str) -> tuple[int, int]:
    """Parse a compute capability: "8.9" gives (8, 9).

    Raises:
        ValueError: the text is no compute capability.
    """
    found = re.fullmatch(r"(\d+)\.(\d)", text)
    if found is None:
        known = ", ".join(f"{major}.{minor} ({gpu.names})" for (major, minor), gpu in GPUS.items())
        raise ValueError(f"expected a compute capability such as 8.9, got {text!r}; known: {known}")
    return int(found[1]), int(found[2])


def missing_kernels(capability: tuple[int, int]) -> dict[str, str | None]:
    """Return, by operation, why it runs in PyTorch on such a GPU, or None where it is native."""
    import lgfast.ops  # noqa: F401  registers the operations

    return {name: _extension.missing_cuda_kernel_reason(name, capability) for name in _extension.operations()}


def check_kernels(gpu: str, missing: Mapping[str, str | None]) -> Iterator[Finding]:
    """Report `missing_kernels` of a GPU, grouped by reason."""
    by_reason: dict[str | None, list[str]] = {}
    for operation, reason in missing.items():
        by_reason.setdefault(reason, []).append(operation)
    for reason, names in sorted(by_reason.items(), key=lambda item: item[0] or ""):
        if reason is None:
            yield Finding("ok", f"native on {gpu}: {', '.join(names)}")
        else:
            _, mentions_it, targets = reason.partition("; build again with ")
            yield Finding(
                "warning" if mentions_it else "note",
                f"in PyTorch on {gpu}, slower: {', '.join(names)} ({reason})",
                f"{targets} {BUILD}" if mentions_it else "",
            )


def inspect_gpu(capability: tuple[int, int]) -> Iterator[Finding]:
    """Report what this build of lgfast does on a GPU, which need not be at hand."""
    name = "{}.{}".format(*capability)
    missing = missing_kernels(capability)
    yield from check_kernels(name, missing)
    if capability not in GPUS:
        yield Finding("note", f"{name}: the shared memory of such GPUs is not known here")
    elif missing["short_attention"] is None:
        gpu = GPUS[capability]
        yield Finding("ok", f"{name}: {gpu.names}; a block can have {gpu.block_smem >> 10} KB of shared memory")
        for student, attentions in STUDENT_ATTENTIONS.items():
            kernels = [f"{one.tokens} tokens {attention_kernels(gpu.block_smem, one)}" for one in attentions]
            yield Finding("ok", f"short_attention of {student} at 224, forward / backward: {'; '.join(kernels)}")
