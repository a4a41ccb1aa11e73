"""Scores of classifications, from how often each class was hit, named and there; definitions as in scikit-learn."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class ClassCounts(NamedTuple):
    """Images of each class, [..., K] each: named rightly, named at all, and there."""

    hits: np.ndarray
    named: np.ndarray
    there: np.ndarray

    @property
    def precision(self) -> np.ndarray:
        """Share of the images named so that are of the class; 0 where none was named so."""
        return share(self.hits, self.named)

    @property
    def recall(self) -> np.ndarray:
        """Share of the class's images that were named so; 0 where it has none."""
        return share(self.hits, self.there)

    @property
    def f1(self) -> np.ndarray:
        """Harmonic mean of precision and recall; 0 where both are."""
        return share(2 * self.hits, self.named + self.there)

    def balanced_accuracy(self) -> np.ndarray:
        """[...]: mean recall of the classes that have images."""
        return share(self.recall.sum(-1), (self.there > 0).sum(-1))

    def macro_f1(self) -> np.ndarray:
        """[...]: mean F1 of the classes that have images or were named."""
        return share(self.f1.sum(-1), (self.named + self.there > 0).sum(-1))


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, 0 where the whole is."""
    return np.divide(part, whole, out=np.zeros(np.shape(whole)), where=np.asarray(whole) > 0)
