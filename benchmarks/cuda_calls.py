"""Capture a call on a GPU into a graph, time it, and count its waits."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

SPIN_CYCLES = 2_000_000  # about a millisecond


def captured(make_run: Callable[[], Callable[[], object]]) -> Callable[[], None]:
    """Capture the function that `make_run` makes, and return the replay of the graph.

    Making, warm-up and capture use one stream, as autograd needs.
    """
    with torch.cuda.stream(torch.cuda.current_stream()):  # brings back the stream, which a failed capture would change
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run = make_run()
            for _ in range(2):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            run()

    def replay(kept=run):  # the graph reads what `run` holds, such as tensors saved for backward
        graph.replay()

    return replay


def milliseconds(call: Callable[[], object], queued: bool = False) -> float:
    """Measure the milliseconds between two events around a call.

    Args:
        queued: let the GPU spin first, so that the whole call is queued when it begins; the host's time, up to about
            a millisecond, is then not counted.
    """
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    if queued:
        torch.cuda._sleep(SPIN_CYCLES)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def waits(call: Callable[[], object]) -> int:
    """Count how often the host waits for the GPU in one call, by the operations that PyTorch knows to wait."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in found)
