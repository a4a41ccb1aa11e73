"""Count what one training step does: operations, host reads, backends of attention, multiplications."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.attention_backend import backend_of, describe
from benchmarks.cuda_calls import waits
from benchmarks.step_calls import make_call
from benchmarks.train_setup import Setup


class Counts(NamedTuple):
    """The counts of one call."""

    launches: int
    syncs: int  # times the host waits for the device
    attention: str  # backends of PyTorch's attention


class Dispatched(TorchDispatchMode):
    """Counts the operations of an eager call, without views and host reads; each launches at least one kernel."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.launches = self.syncs = 0
        self.attention: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        reads = func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero")
        # optimizers read step counts that are on the host without waiting
        self.syncs += reads and args[0].device.type == self.device.type
        if backend := backend_of(func.overloadpacket.__name__):
            self.attention[backend] += 1
        self.launches += not func.is_view and func.overloadpacket.__name__ not in ("_local_scalar_dense", "detach")
        return func(*args, **kwargs or {})


def count(call: Callable[[], object], device: torch.device) -> Counts:
    """Count what one call does, backward included, after a first call."""
    call()
    with Dispatched(device) as dispatched:
        call()
    replays = getattr(getattr(call, "func", None), "graph", None) is not None  # a launch that the dispatcher cannot see
    syncs = waits(call) if device.type == "cuda" else dispatched.syncs
    return Counts(dispatched.launches + replays, syncs, describe(dispatched.attention))


def count_flops(name: str, guided: bool, device: torch.device) -> float:
    """Count multiplications and additions of one image's matrix products and convolutions, forward and backward."""
    batch = 2
    paper = make_call("paper", Setup(name, batch, guided, device), "fp32")
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # math: attention as matrix products
        paper()
    return counter.get_total_flops() / batch
