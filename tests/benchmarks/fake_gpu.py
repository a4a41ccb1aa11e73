"""Pretend to have a GPU that computes nothing: tensors on `cuda` have no data, and the driver accepts every call.
 What a benchmark does only on a GPU (graphs, events, copies past the L2 cache, tensors of two devices) runs here,
without
numbers. Gradients are not computed either: autograd's engine asks the real driver for its streams.
"""

import contextlib
import types
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lgfast import _extension
from lgfast.optim import contract

NAME = "NVIDIA H100 80GB HBM3"
REPLAY_MS = 2.0
DEVICE = torch.device("cuda", 0)


class Stream:
    def __init__(self, *args, **kwargs) -> None:
        self.cuda_stream = 0

    def wait_stream(self, other) -> None:
        pass


class Event:
    def __init__(self, *args, **kwargs) -> None:
        pass

    def record(self, *args) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end) -> float:
        return REPLAY_MS


class Graph:
    def replay(self) -> None:
        pass


def nothing(*args, **kwargs) -> None:
    pass


DRIVER = {
    "Stream": Stream,
    "Event": Event,
    "CUDAGraph": Graph,
    "graph": lambda *args, **kwargs: contextlib.nullcontext(),
    "stream": lambda *args: contextlib.nullcontext(),
    "current_stream": Stream,
    "synchronize": nothing,
    "_sleep": nothing,
    "reset_peak_memory_stats": nothing,
    "memory_allocated": lambda *args: 0,
    "max_memory_allocated": lambda *args: 1 << 20,
    "get_device_name": lambda *args: NAME,
    "get_device_properties": lambda *args: types.SimpleNamespace(
        L2_cache_size=50 << 20, major=9, minor=0, shared_memory_per_block_optin=227 << 10
    ),
}


def no_gradients(outputs, inputs, *args, **kwargs):
    return tuple(torch.empty_like(tensor) for tensor in inputs)


@contextlib.contextmanager
def fake_gpu():
    """Within a `with` block, tensors on `cuda` have only shapes and dtypes, and mixing them with CPU tensors fails."""
    with contextlib.ExitStack() as stack:
        for name, stand_in in DRIVER.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, stand_in))
        stack.enter_context(mock.patch.object(_extension, "_has_cuda_kernels", True))
        stack.enter_context(mock.patch.object(torch.autograd, "grad", no_gradients))
        stack.enter_context(mock.patch.object(contract, "_check_parameters", nothing))  # of data
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield DEVICE
