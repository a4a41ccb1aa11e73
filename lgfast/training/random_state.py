"""Separate random numbers for each lane of a process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


class RandomState:
    """State of the default generators (CPU, and the current GPU where CUDA is in use), as it is when this is made."""

    def __init__(self) -> None:
        self._keep()

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Context in which the default generators continue from this state; at its end the state is where they are."""
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda)
        try:
            yield
        finally:
            self._keep()

    def _keep(self) -> None:
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
