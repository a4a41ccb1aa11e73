"""Compute scores of a network's answers, each with an interval from a bootstrap over the images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from lgfast.records.answers import Answers
from lgfast.step.scores import ClassCounts, average_precision, mean_over_classes

RESAMPLES, SEED = 1000, 0
BINS = 15  # bins of the calibration error, as in Guo et al., ICML 2017
TOP = 5


class Score(NamedTuple):
    """A value, and its 2.5 % and 97.5 % quantiles over resampled images."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def scores(answers: Answers, resamples: int = RESAMPLES) -> dict[str, Score]:
    """Compute top1, top5 (at most as many as classes), balanced_accuracy, macro_f1 and ece in percent, loss in nats.

    ece is the expected calibration error of the likeliest class, over 15 bins of equal width. Where images may have
    several classes, map (mean average precision) comes in its place.
    """
    measure = _measure_sets(answers) if answers.is_multi_label else _measure(answers)
    values = measure(np.ones(len(answers.labels)))
    drawn = [measure(weights) for weights in _weights(len(answers.labels), resamples)]
    spread = {name: np.quantile([row[name] for row in drawn], (0.025, 0.975)) for name in values}
    return {name: Score(value, *map(float, spread[name])) for name, value in values.items()}


def _weights(images: int, resamples: int) -> Iterator[np.ndarray]:
    """Draw how often each resample holds each image."""
    random = np.random.default_rng(SEED)
    for _ in range(resamples):
        yield np.bincount(random.integers(0, images, images), minlength=images).astype(float)


def _measure(answers: Answers) -> Callable[[np.ndarray], dict[str, float]]:
    """Return a function of the images' weights [n] that computes the scores."""
    probabilities, labels = answers.probabilities, answers.labels
    own = probabilities[np.arange(len(labels)), labels]
    loss = -np.log(np.maximum(own, np.finfo(float).tiny))
    is_near = (-answers.logits).argpartition(min(TOP, probabilities.shape[1]) - 1, axis=1)[:, :TOP] == labels[:, None]
    confidence, is_hit = probabilities.max(1), answers.is_hit.astype(float)
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)

    def measure(weights: np.ndarray) -> dict[str, float]:
        counts, total = class_counts(answers, weights), weights.sum()
        gaps = np.bincount(bins, weights * (confidence - is_hit), BINS)
        return {
            "top1": 100 * float(weights @ is_hit / total),
            "top5": 100 * float(weights @ is_near.any(1) / total),
            "balanced_accuracy": 100 * float(counts.balanced_accuracy()),
            "macro_f1": 100 * float(counts.macro_f1()),
            "ece": 100 * float(np.abs(gaps).sum() / total),
            "loss": float(weights @ loss / total),
        }

    return measure


def _measure_sets(answers: Answers) -> Callable[[np.ndarray], dict[str, float]]:
    """Return the same function for images that may have several classes."""
    there, probabilities, rows = answers.are_there, answers.probabilities, np.arange(len(answers.labels))[:, None]
    loss = -np.log(np.maximum(np.where(there, probabilities, 1 - probabilities), np.finfo(float).tiny)).mean(1)
    order = (-answers.logits).argpartition(min(TOP, there.shape[1]) - 1, axis=1)[:, :TOP]
    is_hit, is_near = answers.is_hit.astype(float), there[rows, order].any(1)

    def measure(weights: np.ndarray) -> dict[str, float]:
        counts, total = class_counts(answers, weights), weights.sum()
        precision = average_precision(answers.logits, there, weights)
        return {
            "map": 100 * float(mean_over_classes(precision, counts.there)),
            "top1": 100 * float(weights @ is_hit / total),
            "top5": 100 * float(weights @ is_near / total),
            "balanced_accuracy": 100 * float(counts.balanced_accuracy()),
            "macro_f1": 100 * float(counts.macro_f1()),
            "loss": float(weights @ loss / total),
        }

    return measure


def class_counts(answers: Answers, weights: np.ndarray | None = None) -> ClassCounts:
    """Count images by class, or sum their weights [n]."""
    weights = np.ones(len(answers.labels)) if weights is None else weights
    if answers.is_multi_label:
        named, there = answers.are_named, answers.are_there
        return ClassCounts(*(weights @ part for part in (named & there, named, there)))
    sums = ((answers.labels, weights * answers.is_hit), (answers.named, weights), (answers.labels, weights))
    return ClassCounts(*(np.bincount(classes, values, len(answers.class_names)) for classes, values in sums))


def class_rows(answers: Answers) -> list[dict[str, Any]]:
    """Return a row for each class: precision, recall and F1 in percent, support, and its most frequent wrong
    prediction; where images may have several classes, its average precision in percent in place of the latter."""
    counts = class_counts(answers)
    rows: list[dict[str, Any]] = [
        {
            "class": name,
            "precision": round(100 * float(counts.precision[number]), 2),
            "recall": round(100 * float(counts.recall[number]), 2),
            "f1": round(100 * float(counts.f1[number]), 2),
            "support": int(counts.there[number]),
        }
        for number, name in enumerate(answers.class_names)
    ]
    if answers.is_multi_label:
        for row, precision in zip(rows, average_precision(answers.logits, answers.labels), strict=True):
            row["average_precision"] = round(100 * float(precision), 2)
        return rows
    confusion = confusion_matrix(answers)
    np.fill_diagonal(confusion, 0)
    for row, mistaken in zip(rows, confusion, strict=True):
        worst = int(mistaken.argmax())
        row |= {"taken_for": answers.class_names[worst] if mistaken[worst] else "", "times": int(mistaken[worst])}
    return rows


def confusion_matrix(answers: Answers) -> np.ndarray:
    """Return int64 [K, K]: the number of images of class i that were predicted as class j."""
    size = len(answers.class_names)
    return np.bincount(answers.labels * size + answers.named, minlength=size * size).reshape(size, size)


def mistakes(answers: Answers, count: int) -> list[int]:
    """Return the wrongly predicted images, the most confident first."""
    is_wrong = (answers.are_named != answers.are_there).any(1) if answers.is_multi_label else ~answers.is_hit
    wrong = np.flatnonzero(is_wrong)
    return wrong[np.argsort(-confidence(answers)[wrong], kind="stable")][:count].tolist()


def confidence(answers: Answers) -> np.ndarray:
    """Return [n]: the probability of the likeliest class; of several classes, that of what is most wrongly said."""
    if answers.is_multi_label:
        return np.abs(answers.probabilities - answers.are_there).max(1)
    return answers.probabilities.max(1)
