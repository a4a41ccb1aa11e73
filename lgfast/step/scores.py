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


def mean_over_classes(values: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Mean [...] of values [..., K] over the classes that have images."""
    return share((values * (there > 0)).sum(-1), (there > 0).sum(-1))


def average_precision(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Average precision [K] of each class, 0 where it has no image; as scikit-learn's average_precision_score.

    Args:
        scores: [n, K]; more is likelier.
        labels: [n, K] of 0 and 1.
        weights: [n] of the images; None: 1 each.
    """
    order = np.argsort(-scores, axis=0, kind="stable")
    sorted_scores, is_there = (np.take_along_axis(values, order, 0) for values in (scores, labels > 0))
    drawn = np.ones(scores.shape) if weights is None else weights[order]
    is_end = np.ones(scores.shape, bool)
    is_end[:-1] = sorted_scores[1:] != sorted_scores[:-1]  # images of one score are found together
    ends = np.where(is_end, np.arange(len(scores))[:, None], len(scores))
    ends = np.minimum.accumulate(ends[::-1], axis=0)[::-1]
    hits = drawn * is_there
    precision = np.take_along_axis(share(hits.cumsum(0), drawn.cumsum(0)), ends, 0)
    return share((hits * precision).sum(0), hits.sum(0))
