"""Optimizers that a captured step can hold: their groups' numbers live on the device, where the step reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

Rows = Sequence[tuple[float, ...]]


class DeviceNumbers:
    """A table with a row per group that follows the numbers on the host; the device never waits for it.

    Args:
        rows: the numbers of each group.
        device: where the table lives.
        dtype: of the table.
    Attributes:
        table: [groups, numbers]; its place in memory does not change.
    """

    def __init__(self, rows: Rows, device: torch.device, dtype: torch.dtype) -> None:
        self.table = torch.tensor(rows, dtype=dtype, device=device)
        self._sent = list(rows)

    def send(self, rows: Rows) -> None:
        """Copy the numbers to the device if one of them changed.

        Raises:
            RuntimeError: one changed and a CUDA graph is being captured, which would hold it for ever.
        """
        if rows == self._sent:
            return
        is_cuda = self.table.is_cuda
        if is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "the optimizer's groups changed after its last step; call send_hyperparameters() before the capture"
            )
        # A new pinned tensor each time: the copy of the last one may still be under way.
        self.table.copy_(torch.tensor(rows, dtype=self.table.dtype, pin_memory=is_cuda), non_blocking=True)
        self._sent = list(rows)


class DeviceOptimizer(torch.optim.Optimizer):
    """An optimizer whose step reads its numbers on the device, so that a CUDA graph can hold it.

    Subclasses set `numbers` and give `_rows`, and `_update` or a step of their own.

    Attributes:
        numbers: the table that a step reads.
    """

    numbers: DeviceNumbers

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters; `closure`, if given, computes the loss anew, which is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._update()
        return loss

    def send_hyperparameters(self) -> None:
        """Bring the groups' numbers to the device where they changed; for a captured step, before each replay."""
        self.numbers.send(self._rows())

    def _rows(self) -> list[tuple[float, ...]]:
        """The numbers of each group, as they stand on the host."""
        raise NotImplementedError  # abstract: every optimizer has its own

    def _update(self) -> None:
        """One step from the gradients at hand."""
        raise NotImplementedError  # abstract: every optimizer has its own
