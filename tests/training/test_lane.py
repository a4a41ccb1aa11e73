"""A lane does what is due around its steps."""

import dataclasses

import pytest
import torch

from lgfast.records.checkpoint import read_metadata
from lgfast.records.run_log import MetricsLog, read_curve
from lgfast.runtime.interrupt import InterruptFlag
from lgfast.training.lane import Lane
from lgfast.training.random_state import RandomState
from tests.runs import small_loop, tiny_config

UNGUIDED = {"guidance.weight": 0, "augment.teacher_size": 0}


@pytest.mark.parametrize(("optimizer", "own", "step"), [("adamw", 0.5, 0.0), ("sgd", None, 0.5), ("lamb", None, 0.5)])
def test_gradients_are_clipped_once(tmp_path, optimizer, own, step):
    """The flat optimizer clips by itself; for every other one the step does."""
    (lane,) = small_loop(tiny_config(tmp_path, **UNGUIDED | {"optim.name": optimizer, "optim.clip_norm": 0.5})).lanes
    assert getattr(lane.step.optimizer, "max_norm", None) == own
    assert lane.step.precision.clip_norm == step


@pytest.mark.parametrize("ending", ["complete", "saved", "failed", "pruned"])
def test_a_lane_closes_its_log_however_it_ends(tmp_path, monkeypatch, ending):
    closed, flag = [], InterruptFlag()
    monkeypatch.setattr(MetricsLog, "close", lambda log: closed.append(log))
    loop = small_loop(tiny_config(tmp_path, **UNGUIDED | {"epochs": 2}), flag)
    (lane,) = loop.lanes
    if ending == "failed":
        monkeypatch.setattr(Lane, "log_step", lambda lane: (_ for _ in ()).throw(ValueError("broken")))
    loop.on_epoch = lambda lane, row: ending == "pruned"
    flag.requested = ending == "saved"
    loop.run()
    assert (lane.status, closed) == (ending, [lane.log])
    assert (lane.error is not None) == (ending in ("saved", "failed"))


def test_lanes_have_random_numbers_of_their_own():
    torch.manual_seed(1)
    first = RandomState()
    expected = torch.rand(4)
    torch.manual_seed(2)
    second = RandomState()
    other = torch.rand(4)
    drawn = {first: [], second: []}
    for lane in (first, second, second, first, first, first, second, second):
        with lane.in_use():
            drawn[lane].append(torch.rand(1))
    assert torch.equal(torch.cat(drawn[first]), expected) and torch.equal(torch.cat(drawn[second]), other)


SCORES = [{"top1": 50.0, "macro_f1": 10.0}, {"top1": 40.0, "macro_f1": 30.0}, {"top1": 60.0, "macro_f1": 20.0}]


def scored(monkeypatch, scores):
    """Replace the scores of the epochs."""
    left = iter(scores)
    usual = {"top5": 90.0, "balanced_accuracy": 1.0, "loss": 1.0, "images": 24}
    monkeypatch.setattr("lgfast.training.loop.evaluate_all", lambda *args: [next(left) | usual])


@pytest.mark.parametrize(("metric", "epoch", "score"), [("top1", 3, 60.0), ("macro_f1", 2, 30.0)])
@pytest.mark.parametrize("stopped_after", [None, 1, 2])
def test_the_best_epoch_is_chosen_by_the_metric_across_a_resume(
    tmp_path, monkeypatch, metric, epoch, score, stopped_after
):
    changes = UNGUIDED | {"epochs": 3, "eval.metric": metric, "eval.every_epochs": 1}
    config, left = tiny_config(tmp_path, **changes), list(SCORES)
    if stopped_after:
        loop = small_loop(config)
        loop.on_epoch = lambda lane, row: row["epoch"] == stopped_after
        scored(monkeypatch, left[:stopped_after])
        loop.run()
        left = left[stopped_after:]
    loop = small_loop(config)
    (lane,) = loop.lanes
    assert lane.resume() is bool(stopped_after)
    scored(monkeypatch, left)
    loop.run()
    assert (lane.progress.best_epoch, lane.progress.best_score) == (epoch, score)
    assert lane.progress.best_top1 == SCORES[epoch - 1]["top1"]
    assert read_metadata(tmp_path / "run" / "best.safetensors")["epoch"] == epoch
    assert read_curve(tmp_path / "run", metric) == ([1, 2, 3], [row[metric] for row in SCORES])


def test_a_checkpoint_of_before_there_were_metrics_is_continued(tmp_path, monkeypatch):
    """Such a checkpoint holds only the best top-1, and its summary.csv has fewer columns."""
    config = tiny_config(tmp_path, **UNGUIDED | {"epochs": 2, "eval.every_epochs": 1})
    loop = small_loop(config)
    (lane,) = loop.lanes
    loop.on_epoch = lambda lane, row: True
    scored(monkeypatch, SCORES[:1])
    real = dataclasses.asdict
    monkeypatch.setattr(
        "lgfast.training.saving.dataclasses.asdict",
        lambda progress: {key: value for key, value in real(progress).items() if key != "best_score"},
    )
    monkeypatch.setattr("lgfast.records.run_log.EPOCH_COLUMNS", ("epoch", "val_top1", "seconds"))
    loop.run()
    monkeypatch.undo()
    loop = small_loop(config)
    (lane,) = loop.lanes
    assert lane.resume() and lane.progress.best_score == 50
    scored(monkeypatch, SCORES[1:2])
    loop.run()
    assert lane.progress.best_epoch == 1 and read_curve(tmp_path / "run") == ([1, 2], [50.0, 40.0])
