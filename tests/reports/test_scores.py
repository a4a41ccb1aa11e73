"""Scores of answers are scikit-learn's; their intervals are those of resampled images."""

import itertools
import math
import os

import numpy as np
import pytest
import torch
from sklearn import metrics

from lgfast.records.answers import Answers, read_answers, write_answers
from lgfast.reports.answers import write_answer_files
from lgfast.reports.scores import class_rows, confusion_matrix, mistakes, scores
from lgfast.step.meters import EvalMeter

CLASSES = tuple("abcdefgh")


@pytest.fixture(params=["all classes", "a class without images"])
def answers(request):
    random = np.random.default_rng(3)
    labels = random.choice(8, 300, p=[0.4, 0.2, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05])
    if request.param != "all classes":
        labels[labels == 3] = 0
    logits = random.normal(size=(300, 8)) + 2 * np.eye(8)[labels] * random.random((300, 1))
    return Answers(logits.astype(np.float32), labels, CLASSES)


def expected_scores(answers):
    labels, named, sure = answers.labels, answers.named, torch.tensor(answers.logits).softmax(1).numpy()
    present = sorted(set(labels))
    return {
        "top1": 100 * metrics.accuracy_score(labels, named),
        "top5": 100 * metrics.top_k_accuracy_score(labels, answers.logits, k=5, labels=range(8)),
        "balanced_accuracy": 100 * np.mean(metrics.recall_score(labels, named, labels=present, average=None)),
        "macro_f1": 100 * metrics.f1_score(labels, named, average="macro"),
        "loss": metrics.log_loss(labels, sure.astype(float), labels=range(8)),
    }


def test_scores_are_those_of_scikit_learn(answers):
    found = scores(answers, resamples=5)
    for name, value in expected_scores(answers).items():
        assert found[name].value == pytest.approx(value, rel=1e-5), name


def test_the_meter_on_the_device_gives_the_same(answers):
    meter = EvalMeter("cpu")
    for part in (slice(0, 70), slice(70, None)):
        meter.update(torch.tensor(answers.logits[part]), torch.tensor(answers.labels[part]))
    found = meter.read()
    for name, value in expected_scores(answers).items():
        assert found[name] == pytest.approx(value, rel=1e-5), name


def test_calibration_error_is_the_mean_gap_of_the_bins(answers):
    sure, hit = answers.probabilities.max(1), answers.is_hit
    total = 0.0
    for low in range(15):
        inside = (sure > low / 15) & (sure <= (low + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(sure[inside].mean() - hit[inside].mean())
    assert scores(answers, resamples=2)["ece"].value == pytest.approx(100 * total)


def test_rows_of_classes_are_those_of_scikit_learn(answers):
    columns = metrics.precision_recall_fscore_support(answers.labels, answers.named, labels=range(8), zero_division=0)
    rows = class_rows(answers)
    for number, row in enumerate(rows):
        precision, recall, f1, support = (column[number] for column in columns)
        assert row["class"] == CLASSES[number] and row["support"] == support
        found = [row[name] for name in ("precision", "recall", "f1")]
        assert found == pytest.approx([100 * precision, 100 * recall, 100 * f1], abs=0.0051)
        confused = [
            (label, named) for label, named in zip(answers.labels, answers.named, strict=True) if label == number
        ]
        times = sum(named == CLASSES.index(row["taken_for"]) for _, named in confused) if row["taken_for"] else 0
        assert row["times"] == times and row["taken_for"] != row["class"]
    expected = metrics.confusion_matrix(answers.labels, answers.named, labels=range(8))
    assert (confusion_matrix(answers) == expected).all()


def test_intervals_are_as_wide_as_the_binomial_says():
    """For a share p of n images the bootstrap's deviation is sqrt(p (1 - p) / n)."""
    labels = np.arange(400) % 2
    logits = np.eye(2, dtype=np.float32)[np.where(np.arange(400) < 100, 1 - labels, labels)]
    value, low, high = scores(Answers(logits, labels, ("a", "b")))["top1"]
    width = 2 * 1.96 * 100 * math.sqrt(0.75 * 0.25 / 400)
    assert value == 75 and low < 75 < high and high - low == pytest.approx(width, rel=0.1)


def test_what_is_always_right_has_no_spread():
    labels = np.arange(20) % 3
    found = scores(Answers(50 * np.eye(3, dtype=np.float32)[labels], labels, ("a", "b", "c")), resamples=50)
    assert all(found[name] == (100, 100, 100) for name in ("top1", "top5", "balanced_accuracy", "macro_f1"))
    assert found["ece"].high < 1e-6


def test_mistakes_come_with_the_most_confident_first(answers):
    found = mistakes(answers, 1000)
    sure = answers.probabilities.max(1)
    assert set(found) == set(np.flatnonzero(answers.named != answers.labels))
    assert all(sure[first] >= sure[second] for first, second in itertools.pairwise(found))
    assert mistakes(answers, 3) == found[:3]


def test_names_that_are_no_utf8_get_their_files_too(tmp_path):
    classes, files = ("caf\udce9", "b\x1b[2J"), ("x\udce9.png", "y.png")
    found = Answers(np.array([[0, 1], [0, 1]], np.float32), np.array([0, 1]), classes, files)
    write_answer_files(found, None, tmp_path)
    assert os.fsencode("x\udce9.png") in (tmp_path / "mistakes.csv").read_bytes()
    assert os.fsencode("caf\udce9") in (tmp_path / "classes.csv").read_bytes()
    write_answers(tmp_path, found)
    assert read_answers(tmp_path).class_names == classes
