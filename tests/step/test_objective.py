"""The losses for unbalanced classes, against scikit-learn's weights and float64 PyTorch."""

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from lgfast.assembly.lanes import objective
from lgfast.assembly.run import train_run
from lgfast.config import Config, replace
from lgfast.records.result import read_result
from tests.runs import tiny_config

TRAIN_LABELS = torch.arange(3).repeat_interleave(torch.tensor([50, 5, 20]))


def make(balance, smoothing=0.0):
    config = replace(Config(), {"data.balance": balance, "optim.label_smoothing": smoothing, "guidance.weight": 0})
    return objective(config, torch.bincount(TRAIN_LABELS), torch.device("cpu"))


def batch():
    torch.manual_seed(0)
    return torch.randn(16, 3, dtype=torch.float64), torch.randint(3, (16,))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weights_are_scikit_learns(smoothing):
    logits, labels = batch()
    weights = torch.tensor(compute_class_weight("balanced", classes=np.arange(3), y=TRAIN_LABELS.numpy()))
    probabilities = F.one_hot(labels, 3) * (1 - smoothing) + smoothing / 3
    expected = -(weights * probabilities * logits.log_softmax(1)).sum(1).mean()
    for targets in (labels, F.one_hot(labels, 3).double()):  # mixed images have probabilities for labels
        losses, given_logits = make("loss", smoothing)(logits, None, targets, None)
        assert losses.total.item() == pytest.approx(expected.item(), rel=1e-6)
        assert torch.equal(given_logits, logits)


def test_logits_are_lowered_by_the_share_of_their_class_in_training_alone():
    logits, labels = batch()
    shares = torch.tensor([50, 5, 20], dtype=torch.float64) / 75
    scores = logits.exp() * shares
    expected = -(scores / scores.sum(1, keepdim=True)).log()[torch.arange(16), labels].mean()
    losses, given_logits = make("logits")(logits, None, labels, None)
    assert losses.total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.equal(given_logits, logits)


@pytest.mark.parametrize("balance", ["none", "sampler"])
def test_other_ways_leave_the_loss_as_it_is(balance):
    logits, labels = batch()
    assert make(balance)(logits, None, labels, None)[0].total == F.cross_entropy(logits, labels)


@pytest.mark.parametrize("balance", ["loss", "logits", "sampler"])
def test_a_run_trains_with_it(tmp_path, balance):
    train_run(tiny_config(tmp_path, epochs=1, **{"data.balance": balance}))
    assert read_result(tmp_path / "run").test_top1 >= 0
