"""The whole step as one CUDA graph: captured once per batch shape, then replayed with one launch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from lgfast import ranks
from lgfast.data.batch import Batch
from lgfast.flat_adamw import FlatAdamW
from lgfast.optim import DeviceSGD

# Eager steps before the capture: lazy state (cuBLAS workspaces, autotuning, loss scale) must exist by then.
WARMUP_STEPS = 3


def graph_obstacle(device: torch.device, optimizer: torch.optim.Optimizer) -> str | None:
    """Why a step cannot be captured, or None."""
    if device.type != "cuda":
        return f"CUDA graphs need a CUDA device, got {device}"
    if ranks.world() > 1:
        return "a step of several ranks exchanges gradients, which is not captured"
    if not isinstance(optimizer, (FlatAdamW, DeviceSGD)):
        name = type(optimizer).__name__
        return f"{name} keeps numbers on the host, which a graph would freeze (optim.name=adamw and sgd fit)"
    return None


@dataclass
class Captured:
    """A graph and the tensors it reads its batch from."""

    graph: torch.cuda.CUDAGraph
    inputs: Batch


class StepGraph:
    """Runs a step; from the fourth batch of a shape on, by replaying its graph.

    Every call trains on its batch exactly once, so the losses are those of the eager step. What the step reads besides
    the batch (learning rates, weights, counters, random state) lives on the device and may change between calls.

    Args:
        run: the step. Reads nothing back and creates no state after its third call.
    """

    def __init__(self, run: Callable[[Batch], None]) -> None:
        self.run = run
        self._captured: dict[tuple, Captured] = {}
        self._num_eager: dict[tuple, int] = {}

    def __call__(self, batch: Batch) -> None:
        shape = tuple(None if tensor is None else (tensor.shape, tensor.dtype) for tensor in batch)
        if shape in self._captured:
            self._replay(self._captured[shape], batch)
        elif self._num_eager.get(shape, 0) < WARMUP_STEPS:
            self._num_eager[shape] = self._num_eager.get(shape, 0) + 1
            self._run_beside(batch)
        else:
            self._captured[shape] = self._capture(batch)
            self._replay(self._captured[shape], batch)

    def _run_beside(self, batch: Batch) -> None:
        """Eagerly, on a stream of its own as a capture needs it."""
        stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            self.run(batch)
        current.wait_stream(stream)
        for tensor in batch:
            if tensor is not None:
                tensor.record_stream(stream)

    def _capture(self, batch: Batch) -> Captured:
        inputs = Batch(*(None if tensor is None else tensor.clone() for tensor in batch))
        graph = torch.cuda.CUDAGraph()
        # thread_local: a loader's pinning thread may call CUDA meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self.run(inputs)
        return Captured(graph, inputs)

    def _replay(self, captured: Captured, batch: Batch) -> None:
        for static, tensor in zip(captured.inputs, batch, strict=True):
            if tensor is not None:
                static.copy_(tensor, non_blocking=True)
        captured.graph.replay()
