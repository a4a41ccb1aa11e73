"""Compute scores from counts of each class's hits, predictions and images; definitions are scikit-learn's."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class ClassCounts(NamedTuple):
    """Counts [..., K] for each class: correct predictions, all predictions, and images."""

    hits: np.ndarray
    named: np.ndarray
    there: np.ndarray

    @property
    def precision(self) -> np.ndarray:
        """Share of the predictions of a class that are right; 0 where there are none."""
        return share(self.hits, self.named)

    @property
    def recall(self) -> np.ndarray:
        """Share of the class's images that were predicted rightly; 0 where it has none."""
        return share(self.hits, self.there)

    @property
    def f1(self) -> np.ndarray:
        """Harmonic mean of precision and recall; 0 where both are 0."""
        return share(2 * self.hits, self.named + self.there)

    def balanced_accuracy(self) -> np.ndarray:
        """Mean recall of the classes that have images, [...]."""
        return share(self.recall.sum(-1), (self.there > 0).sum(-1))

    def macro_f1(self) -> np.ndarray:
        """Mean F1 of the classes that have images or predictions, [...]."""
        return share(self.f1.sum(-1), (self.named + self.there > 0).sum(-1))


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return part / whole, 0 where the whole is 0."""
    return np.divide(part, whole, out=np.zeros(np.shape(whole)), where=np.asarray(whole) > 0)
