"""Decide when guidance ends: never, after a given epoch, or when the student no longer comes closer to the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

WINDOW, THRESHOLD = 50, -0.02  # of the published rule, for runs of 300 epochs
RELATIVE_THRESHOLD = -0.5  # of `RelativeStop`; chosen in docs/guidance.md


def smoothed_slope(losses: Sequence[float], window: int = WINDOW) -> float:
    """Return how much the guidance loss changes in an epoch, d_e of adaptive locality guidance; negative while it
    falls.

    With the losses L_1 .. L_e and the window w:

        delta_i = (L_i - mean(L_1 .. L_{i-1})) / i               for 2 <= i <= w
                = (L_i - L_{i-w}) / w                            for i > w
        d_e     = (delta_2 + ... + delta_e) / e                  for e <= w
                = mean of the last w deltas                      for e > w

    For e >= 2w the last line is the published (1 / w^2) sum of L_i - L_{i-w} over the last w epochs.

    Args:
        losses: mean guidance loss of every epoch so far, not weighted; at least two.
        window: w, epochs.
    Raises:
        ValueError: fewer than two losses.
    Source: Rostand, Hsu & Lu, "Adaptive Locality Guidance", IEEE TNNLS 2024 (10.1109/TNNLS.2024.3515076), equations 10
        to 19.

    >>> smoothed_slope([8.0, 4.0, 2.0], window=2)
    -2.5
    """
    epoch = len(losses)
    if epoch < 2:
        raise ValueError(f"smoothed_slope: losses must be of two epochs at least, got {epoch}")
    first = max(2, epoch - window + 1)
    deltas = [delta(losses, i, window) for i in range(first, epoch + 1)]
    return sum(deltas) / (epoch if epoch <= window else window)


def delta(losses: Sequence[float], epoch: int, window: int) -> float:
    """Return delta_i of `smoothed_slope`; epochs count from 1."""
    now = losses[epoch - 1]
    if epoch > window:
        return (now - losses[epoch - 1 - window]) / window
    return (now - sum(losses[: epoch - 1]) / (epoch - 1)) / epoch


class GuidanceStop(Protocol):
    """Ends guidance after an epoch.

    Attributes:
        losses: mean guidance loss of every epoch so far; all that an exact continuation needs.
    """

    losses: list[float]

    def append(self, loss: float) -> None:
        """Record the mean guidance loss of the epoch that just ended."""

    def is_over(self) -> bool:
        """Whether the last recorded epoch is the last guided one."""


def guidance_stop(stop: str, threshold: float | None, epochs: int) -> GuidanceStop | None:
    """Return the rule that a configuration names; None where guidance never ends.

    Args:
        stop: never, epoch:N, adaptive or relative, as `guidance.stop`.
        threshold: the threshold of adaptive and relative; None: their default.
        epochs: the length of the run.
    """
    if stop == "never":
        return None
    if stop == "adaptive":
        return AdaptiveStop(WINDOW, THRESHOLD if threshold is None else threshold)
    if stop == "relative":
        return RelativeStop(epochs, RELATIVE_THRESHOLD if threshold is None else threshold)
    return EpochStop(int(stop.removeprefix("epoch:")))


class EpochStop:
    """Ends guidance after a given epoch, counted from 1."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.losses: list[float] = []

    def append(self, loss: float) -> None:
        self.losses.append(loss)

    def is_over(self) -> bool:
        return len(self.losses) >= self.epoch


class AdaptiveStop:
    """Ends guidance after the first epoch whose slope reaches the threshold.

    Noise can reach the threshold in the first epochs. So the rule counts from when the slope first lies below it.

    Args:
        window: epochs that the slope is smoothed over.
        threshold: slope, per epoch and in units of the guidance loss, at which guidance ends; negative.
    """

    def __init__(self, window: int = WINDOW, threshold: float = THRESHOLD) -> None:
        self.window, self.threshold = window, threshold
        self.losses: list[float] = []

    def append(self, loss: float) -> None:
        self.losses.append(loss)

    def is_over(self) -> bool:
        slopes = [self.slope(epoch) for epoch in range(2, len(self.losses) + 1)]
        return bool(slopes) and slopes[-1] >= self.threshold and min(slopes) < self.threshold

    def slope(self, epoch: int) -> float:
        """Return the smoothed slope after an epoch, from the second epoch on."""
        return smoothed_slope(self.losses[:epoch], self.window)


class RelativeStop(AdaptiveStop):
    """`AdaptiveStop` without units, for runs of any length and losses of any size.

    The loss counts in units of its first epoch, the slope in change over a whole run, and the window is a share of the
    run: that of the published rule, 50 of 300 epochs.

    Args:
        epochs: length of the run.
        threshold: share of the first epoch's loss, negative: guidance ends when at its present pace the loss would fall
            by less than that over a whole run.
    """

    def __init__(self, epochs: int, threshold: float) -> None:
        super().__init__(max(2, round(epochs * WINDOW / 300)), threshold)
        self.epochs = epochs

    def slope(self, epoch: int) -> float:
        return super().slope(epoch) * self.epochs / self.losses[0]
