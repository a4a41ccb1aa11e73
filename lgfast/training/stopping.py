"""Whether the user asked a run to stop; all of its ranks get the same answer."""

from __future__ import annotations

import torch

from lgfast.runtime import ranks
from lgfast.runtime.interrupt import InterruptFlag
from lgfast.step.reading import Reading


class StopVote:
    """Asks the interrupt after steps and epochs; every rank gets one answer at one point.

    Args:
        interrupt: of this rank.
        every_steps: how often several ranks exchange what they were asked, within an epoch.
        device: for the exchange.
    """

    def __init__(self, interrupt: InterruptFlag, every_steps: int, device: torch.device) -> None:
        self.interrupt, self.every_steps, self.device = interrupt, every_steps, device
        self._vote: Reading | None = None  # whether any rank was asked to stop by the last exchange

    def after_step(self, step: int) -> bool:
        """Alone it is known at once; several ranks learn at an exchange what any of them was asked by the one before,
        so that nobody waits for a GPU."""
        if ranks.world() == 1:
            return self.interrupt.requested
        if step % self.every_steps:
            return False
        asked = torch.full((1,), float(self.interrupt.requested), device=self.device)
        before, self._vote = self._vote, Reading(ranks.all_reduce_max(asked))
        return before is not None and before.wait() == [1]

    def after_epoch(self) -> bool:
        return ranks.any_rank(self.interrupt.requested, self.device)
