"""Summarise repeated values by their mean and spread."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import NamedTuple


class Spread(NamedTuple):
    """Mean and sample standard deviation. One value has no deviation; no values have no mean either."""

    mean: float | None
    deviation: float | None

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        values = list(values)
        return cls(statistics.mean(values) if values else None, statistics.stdev(values) if len(values) > 1 else None)

    def __str__(self) -> str:
        """E.g. "61.16 ± 2.87"; without a deviation "61.16", without a mean "-"."""
        if self.mean is None:
            return "-"
        return f"{self.mean:.2f}" if self.deviation is None else f"{self.mean:.2f} ± {self.deviation:.2f}"
