"""Find which backend PyTorch's scaled_dot_product_attention runs; its choice differs by version, GPU and shape."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

from torch.utils._python_dispatch import TorchDispatchMode

BACKEND = re.compile(r"^_scaled_dot_product_(?:fused_)?(flash|efficient|cudnn|attention_math)\w*(?<!_backward)$")


def backend_of(op_name: str) -> str:
    """Return cudnn, flash, efficient or math for an operation of attention's forward pass, else ""."""
    found = BACKEND.match(op_name)
    return found[1].removeprefix("attention_") if found else ""


class Backends(TorchDispatchMode):
    """Counts the calls of each backend within a `with` block."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if name := backend_of(func.overloadpacket.__name__):
            self.calls[name] += 1
        return func(*args, **kwargs or {})


def backend_that_runs(call: Callable[[], object]) -> str:
    """Return the backend of one call of PyTorch's attention: math if no operation of another backend runs."""
    with Backends() as backends:
        call()
    return describe(backends.calls) or "math"


def describe(calls: Counter[str]) -> str:
    """Return e.g. "cudnn", or "cudnn x12" for several calls."""
    return " ".join(f"{name} x{count}" if count > 1 else name for name, count in sorted(calls.items()))
