"""Find out whether the user asked a run to stop; all of its ranks get the same answer."""

from __future__ import annotations

import torch

from lgfast.runtime import ranks
from lgfast.runtime.interrupt import InterruptFlag
from lgfast.step.reading import Reading


class StopVote:
    """Asks the interrupt after steps and epochs; every rank gets the same answer at the same point.

    Args:
        interrupt: this rank's.
        every_steps: within an epoch, several ranks exchange their answers every so many steps.
        device: the device of the exchange.
    """

    def __init__(self, interrupt: InterruptFlag, every_steps: int, device: torch.device) -> None:
        self.interrupt, self.every_steps, self.device = interrupt, every_steps, device
        self._vote: Reading | None = None  # the last exchange: whether any rank was asked to stop

    def after_step(self, step: int) -> bool:
        """Whether to stop after this step. A single process knows at once. Several ranks learn at each exchange the
        result of the one before, so that none waits for a GPU."""
        if ranks.world() == 1:
            return self.interrupt.requested
        if step % self.every_steps:
            return False
        asked = torch.full((1,), float(self.interrupt.requested), device=self.device)
        before, self._vote = self._vote, Reading(ranks.all_reduce_max(asked))
        return before is not None and before.wait() == [1]

    def after_epoch(self) -> bool:
        return ranks.any_rank(self.interrupt.requested, self.device)
