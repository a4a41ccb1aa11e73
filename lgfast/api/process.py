"""Restore the process after a call."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def process_kept() -> Iterator[None]:
    """Restore PyTorch's random numbers, threads and current CUDA device at the end of a `with` block."""
    threads, has_cuda = torch.get_num_threads(), torch.cuda.is_initialized()
    device = torch.cuda.current_device() if has_cuda else None
    with torch.random.fork_rng(range(torch.cuda.device_count()) if has_cuda else ()):
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            if device is not None:
                torch.cuda.set_device(device)
