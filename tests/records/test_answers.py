"""Answers are read back as they were kept, and stand in the order of the images whatever the ranks."""

import numpy as np
import pytest
import torch

from lgfast.records.answers import FILE, Answers, read_answers, write_answers
from lgfast.runtime import ranks
from lgfast.step.meters import EvalMeter


def test_answers_are_read_back_as_they_were(tmp_path):
    logits = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    kept = Answers(logits, np.array([0, 1, 1, 0]), ("caf\u00e9", "b"), ("a\udcff.png", "b", "c", "d"), "folder, test")
    write_answers(tmp_path / "test", kept)
    found = read_answers(tmp_path / "test")
    assert (found.logits == kept.logits).all() and (found.labels == kept.labels).all()
    assert (found.class_names, found.files, found.about) == (kept.class_names, kept.files, kept.about)
    assert read_answers(tmp_path) is None


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / FILE).write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ValueError, match=r"logits\.npz is damaged .*; delete it and evaluate the run again"):
        read_answers(tmp_path)


@pytest.mark.parametrize("world", [1, 3])
def test_logits_of_several_ranks_stand_in_the_order_of_the_images(monkeypatch, world):
    logits, labels = torch.randn(10, 4), torch.arange(10) % 4
    meters = [EvalMeter("cpu", keeps_logits=True) for _ in range(world)]
    for rank, meter in enumerate(meters):
        for part in torch.arange(rank, 10, world).split(2):
            meter.update(logits[part], labels[part])
    kept = [{"parts": [{"logits": some, "labels": own} for some, own in meter.parts]} for meter in meters]
    monkeypatch.setattr(ranks, "gather", lambda value: kept)
    found = meters[0].read_logits()
    assert torch.equal(found[0], logits) and torch.equal(found[1], labels)


def test_classes_without_images_have_no_accuracy():
    answers = Answers(np.eye(3, dtype=np.float32)[[0, 1, 1]], np.array([0, 1, 0]), ("a", "b", "c"))
    assert answers.class_top1() == {"a": 50.0, "b": 100.0}
