"""Give each lane of a process its own random numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


class RandomState:
    """Keeps the state that the default generators (CPU, and the current GPU where CUDA is in use) had when it was
    made."""

    def __init__(self) -> None:
        self._keep()

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Let the default generators continue from this state within a `with` block, and keep their state at its
        end."""
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
