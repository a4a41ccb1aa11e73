"""Make batches one ahead, on their own CUDA stream, while the caller uses the last one."""

import functools
from collections.abc import Iterable, Iterator

import torch

from lgfast.data.batch import Batch

# Of the streams that a step runs on. `loading_stream` has the default, the lowest: blocks of `augment` take whole
# multiprocessors, and must not stand before those of the step.
STEP_PRIORITY = -1


def ahead(steps: Iterable, make, device: torch.device) -> Iterator[Batch]:
    """Yield make(step) for each step; on CUDA one batch ahead, on its own stream, while the caller uses the last one.

    The host waits there until the use of the last batch but one is done. Otherwise it would get further ahead of the
    GPU, and every batch that is still to be used takes memory.
    """
    if device.type != "cuda":
        yield from map(make, steps)
        return
    stream = loading_stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    upcoming, used_before = None, None
    try:
        for step in steps:
            with torch.cuda.stream(stream):
                batch, ready = make(step), torch.cuda.Event()
                ready.record(stream)
            if upcoming is not None:
                yield hand_over(*upcoming, device)
                used = torch.cuda.Event(blocking=True)
                used.record(torch.cuda.current_stream(device))
                if used_before is not None:
                    used_before.synchronize()
                used_before = used
            upcoming = batch, ready
        if upcoming is not None:
            yield hand_over(*upcoming, device)
    finally:  # what the batches were made from may be freed now, also where the caller stops early
        torch.cuda.current_stream(device).wait_stream(stream)


@functools.cache
def loading_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream on which all loaders make batches: freed memory is reused only within a stream."""
    return torch.cuda.Stream(device)


def hand_over(batch: Batch, ready: torch.cuda.Event, device: torch.device) -> Batch:
    """Make the current stream wait for the batch, and keep its memory from being reused before that stream is done."""
    current = torch.cuda.current_stream(device)
    current.wait_event(ready)
    for tensor in batch:
        if tensor is not None:
            tensor.record_stream(current)
    return batch
