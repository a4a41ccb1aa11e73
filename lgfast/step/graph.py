"""The whole step as one CUDA graph: captured once per batch shape, then replayed with one launch."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lgfast.data.ahead import STEP_PRIORITY
from lgfast.data.batch import Batch
from lgfast.guidance.teacher import TargetSource
from lgfast.optim.device_numbers import DeviceOptimizer
from lgfast.runtime import ranks
from lgfast.step.precision import Float32

if TYPE_CHECKING:
    from torch.cuda import _POOL_HANDLE

# Eager steps before the capture: lazy state (cuBLAS workspaces, autotuning, loss scale) must exist by then.
WARMUP_STEPS = 3


def graph_obstacle(
    device: torch.device, optimizer: torch.optim.Optimizer, precision: Float32, teacher: TargetSource | None
) -> str | None:
    """Return why a step cannot be captured, or None."""
    if device.type != "cuda":
        return f"CUDA graphs need a CUDA device, got {device}"
    if ranks.world() > 1 and (obstacle := exchange_obstacle(precision, teacher)):
        return obstacle
    if not isinstance(optimizer, DeviceOptimizer):
        name = type(optimizer).__name__
        return f"{name} keeps numbers on the host, which a graph would freeze (optim.name=adamw, muon and sgd fit)"
    return None


def exchange_obstacle(precision: Float32, teacher: TargetSource | None) -> str | None:
    """Why what several ranks exchange within a step cannot be captured, or None."""
    if ranks.backend() != "nccl":
        return f"{ranks.backend()} exchanges the gradients on the host; NCCL's exchanges can be captured"
    if not precision.exchanges_after_backward:
        return "several ranks exchange their gradients during the backward pass (precision=bf16 does after it)"
    if teacher is not None and teacher.exchanges:
        return "the ranks' teachers exchange statistics beside the step (teacher.bn=batch and running do not)"
    return None


@functools.cache
def capture_stream(device: int) -> torch.cuda.Stream:
    """Return the stream on which every step of this process warms up and is captured: memory is reused only within a
    stream, and cuBLAS has a workspace for each."""
    return torch.cuda.Stream(device, priority=STEP_PRIORITY)


_graphs: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()


def shared_pool() -> _POOL_HANDLE | None:
    """Return the memory of the graphs captured so far, for the next one; None where there are none.

    Steps take turns, and no step reads what an earlier one left in this memory, so students of a group and batches of
    several shapes share it. A pool lives as long as one of its graphs.
    """
    return next((graph.pool() for graph in _graphs), None)


@dataclass
class Captured:
    """A graph and the tensors it reads its batch from."""

    graph: torch.cuda.CUDAGraph
    inputs: Batch


class StepGraph:
    """Runs a step; from the fourth batch of a shape on, by replaying its graph.

    Every call trains on its batch exactly once, so the losses are those of the eager step. What the step reads besides
    the batch (learning rates, weights, counters, random state) lives on the device and may change between calls.
    """

    def __init__(self) -> None:
        self._captured: dict[tuple, Captured] = {}
        self._num_eager: dict[tuple, int] = {}

    def __call__(self, run: Callable[[Batch], None], batch: Batch) -> None:
        """
        Args:
            run: the step, the same in every call. Reads nothing back, creates no state after its third call of a
                shape, and leaves nothing in memory of its own that a later step reads.
        """
        shape = tuple(None if tensor is None else (tensor.shape, tensor.dtype) for tensor in batch)
        if shape not in self._captured and self._num_eager.get(shape, 0) < WARMUP_STEPS:
            self._num_eager[shape] = self._num_eager.get(shape, 0) + 1
            run_beside(run, batch)
            return
        if shape not in self._captured:
            self._captured[shape] = capture(run, batch)
        captured = self._captured[shape]
        for static, tensor in zip(captured.inputs, batch, strict=True):
            if static is not None and tensor is not None:
                static.copy_(tensor, non_blocking=True)
        captured.graph.replay()


def run_beside(run: Callable[[Batch], None], batch: Batch) -> None:
    """Run the step eagerly, on the stream of the later capture."""
    stream, current = capture_stream(torch.cuda.current_device()), torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        run(batch)
    current.wait_stream(stream)


def capture(run: Callable[[Batch], None], batch: Batch) -> Captured:
    """Record a step, without taking it.

    Raises:
        ValueError: CUDA refuses, for instance where a user's own model reads a number back to the host.
    """
    inputs = batch.each(torch.clone)
    graph, stream = torch.cuda.CUDAGraph(), capture_stream(torch.cuda.current_device())
    try:
        with (
            torch.cuda.stream(torch.cuda.current_stream()),  # which a failed capture would leave changed
            # thread_local: a loader's pinning thread may call CUDA meanwhile.
            torch.cuda.graph(graph, shared_pool(), stream, capture_error_mode="thread_local"),
        ):
            run(inputs)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error.__context__ or error).splitlines()[0]  # ending the capture fails too, and says less
        raise ValueError(f"step.graph: the step cannot be captured: {reason}; use step.graph=off") from error
    _graphs.add(graph)
    ranks.end_before_parting(graph)
    return Captured(graph, inputs)
