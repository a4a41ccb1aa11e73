"""Meters agree with plain sums."""

import math

import pytest
import torch

from lgfast.step.losses import Losses
from lgfast.step.meters import EvalMeter, TrainMeter
from lgfast.step.reading import Reading


def test_train_meter_means():
    meter = TrainMeter("cpu")
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0]])
    meter.update(Losses(*torch.tensor([3.0, 1.0, 0.8, 4.0])), logits, torch.tensor([0, 0]))
    meter.update(Losses(torch.tensor(1.0), torch.tensor(1.0)), logits, torch.tensor([0, 1]))
    row = meter.read(TrainMeter.WINDOW)
    expected = {"loss": 2.0, "cls_loss": 1.0, "distill_loss": 2.0, "train_top1": 75.0}
    assert row == expected | {"guidance_loss": row["guidance_loss"]}
    assert math.isclose(row["guidance_loss"], 0.4, rel_tol=1e-6)
    meter.reset(TrainMeter.WINDOW)
    assert meter.read(TrainMeter.WINDOW)["loss"] == 0
    assert meter.read(TrainMeter.EPOCH)["loss"] == 2.0


def test_first_non_finite_step_is_remembered():
    meter = TrainMeter("cpu")
    logits, labels = torch.zeros(2, 3), torch.tensor([0, 1])
    for loss in (1.0, math.nan, 2.0, math.inf):
        meter.update(Losses(torch.tensor(loss), torch.tensor(loss)), logits, labels)
    assert meter.first_bad_step() == 1


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_reading_is_of_the_moment_it_was_begun(device):
    values = torch.arange(3.0, device=device)
    reading = Reading(values)
    values.zero_()
    assert reading.wait() == [0, 1, 2] and reading.is_done()


def test_eval_meter_counts_top1_and_top5():
    meter = EvalMeter("cpu")
    logits = torch.arange(8.0).repeat(4, 1)  # class 7 first, then 6, 5, 4, 3
    meter.update(logits, torch.tensor([7, 3, 2, 6]))
    scores = meter.read()
    assert (scores["top1"], scores["top5"], scores["images"]) == (25.0, 75.0, 4)
    expected = torch.nn.functional.cross_entropy(logits.double(), torch.tensor([7, 3, 2, 6])).item()
    assert math.isclose(scores["loss"], expected, rel_tol=1e-6)


def test_top5_is_capped_by_the_class_count():
    meter = EvalMeter("cpu")
    meter.update(torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2]))
    assert meter.read()["top5"] == 100.0


def test_eval_meter_counts_each_class():
    meter = EvalMeter("cpu")
    logits = torch.eye(4)[[0, 0, 1, 2, 2]]
    for part in (slice(0, 2), slice(2, 5)):
        meter.update(logits[part], torch.tensor([0, 1, 1, 2, 0])[part])
    counts = meter.read_classes()
    assert counts.hits.tolist() == [1, 1, 1, 0] and counts.there.tolist() == [2, 2, 1, 0]
    assert meter.read()["top1"] == 60.0
