"""Read numbers from the device without stalling what it still has to do."""

from __future__ import annotations

import torch
from torch import Tensor


class Reading:
    """A copy of some numbers, made after the work that is enqueued by now.

    Args:
        values: [n], on any device; may change as soon as this returns.
    """

    def __init__(self, values: Tensor) -> None:
        self._values = values.to("cpu", non_blocking=True, copy=True)  # from a GPU: into pinned memory
        self._copied = mark(values.device)

    def is_done(self) -> bool:
        """Whether `wait` would return at once."""
        return self._copied is None or self._copied.query()

    def wait(self) -> list[float]:
        """Wait for the device's work up to the copy, not for later work, and return the numbers."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._values.tolist()


def mark(device: torch.device) -> torch.cuda.Event | None:
    """Record an event after the work that is enqueued on the current stream; None on a CPU, whose work is done at
    once."""
    return torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None
