"""Guidance that ends: the teacher then does nothing, and runs continue, and share a process, as those with it do."""

import pytest
import torch
from safetensors.torch import load_file

from lgfast.assembly.run import train_run
from lgfast.config import Config, replace
from lgfast.guidance.teacher import Teacher
from lgfast.records.result import read_result
from lgfast.runtime.interrupt import Interrupted, InterruptFlag
from lgfast.sweep.group import run_group
from lgfast.training.loop import Loop
from tests.runs import StopAt, metrics, tiny_config


def weights(run_dir):
    return load_file(run_dir / "last.safetensors")


def assert_same_weights(a, b):
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def teacher_calls(monkeypatch):
    """How many batches the live teacher has seen."""
    calls, start = [], Teacher.start
    monkeypatch.setattr(Teacher, "start", lambda self, batch: calls.append(1) or start(self, batch))
    return calls


@pytest.fixture
def teacher_images(monkeypatch):
    """Of every training batch of guided runs so far whether it brought images for a teacher."""
    brought, train = [], Loop.train_batch

    def watched(loop, lanes, batch):
        if lanes[0].config.needs_teacher:
            brought.append(batch.teacher_images is not None)
        train(loop, lanes, batch)

    monkeypatch.setattr(Loop, "train_batch", watched)
    return brought


def epochs(run_dir):
    return [row for row in metrics(run_dir) if "epoch" in row]


def test_after_its_last_guided_epoch_the_teacher_does_no_work(tmp_path, teacher_calls):
    result = train_run(tiny_config(tmp_path, **{"guidance.stop": "epoch:1"}))
    rows = epochs(tmp_path / "run")
    assert [row["guidance_loss"] > 0 for row in rows] == [True, False, False]
    steps = rows[0]["step"]
    assert len(teacher_calls) == steps < rows[-1]["step"]
    assert result.guided_epochs == read_result(tmp_path / "run").guided_epochs == 1


@pytest.mark.parametrize(
    "changes", [{}, {"augment.mixup_alpha": 0.8}, {"data.loader": "timm"}], ids=["", "mixed", "timm"]
)
def test_afterwards_the_loader_makes_no_teacher_images(tmp_path, teacher_images, changes):
    """6 steps an epoch; a run that is continued after the end of guidance makes none any more."""
    config = tiny_config(tmp_path, **{"guidance.stop": "epoch:1", "log.save_every_steps": 1, **changes})
    with pytest.raises(Interrupted):
        train_run(config, interrupt=StopAt(11))
    assert 6 < len(teacher_images) < 18
    train_run(config, resume=True)
    assert teacher_images == [True] * 6 + [False] * 12


def test_images_of_stored_maps_end_too(tmp_path, teacher_images):
    changes = {"teacher.targets": "cached", "data.views": 2, "teacher.bn": "running"}
    train_run(tiny_config(tmp_path, **{"guidance.stop": "epoch:1", **changes}))
    assert teacher_images == [True] * 6 + [False] * 12


def test_a_group_makes_teacher_images_until_its_last_trial_is_done_with_them(tmp_path, teacher_images):
    configs = [tiny_config(tmp_path, run_dir=str(tmp_path / stop[-1]), **{"guidance.stop": stop, "data.seed": 1})
               for stop in ("epoch:1", "epoch:2")]  # fmt: skip
    run_group(configs, InterruptFlag())
    assert teacher_images == [True] * 12 + [False] * 6


def test_without_a_rule_guidance_goes_on(tmp_path, teacher_calls):
    result = train_run(tiny_config(tmp_path))
    rows = epochs(tmp_path / "run")
    assert all(row["guidance_loss"] > 0 for row in rows) and len(teacher_calls) == rows[-1]["step"]
    assert result.guided_epochs is None


def test_the_first_epochs_are_those_of_a_guided_run(tmp_path):
    train_run(tiny_config(tmp_path, run_dir=str(tmp_path / "guided")))
    train_run(tiny_config(tmp_path, **{"guidance.stop": "epoch:2"}))
    ended, guided = epochs(tmp_path / "run"), epochs(tmp_path / "guided")
    assert ended[:2] == guided[:2] and ended[2] != guided[2]


def test_afterwards_the_student_trains_as_one_without_a_teacher(tmp_path):
    """Its losses are its cross entropy alone, and the projections keep their values."""
    train_run(tiny_config(tmp_path, **{"guidance.stop": "epoch:1"}))
    for row in epochs(tmp_path / "run")[1:]:
        assert row["loss"] == pytest.approx(row["cls_loss"], rel=1e-9)


@pytest.mark.parametrize("stop_at", [3, 6, 11])
def test_a_continued_run_ends_with_the_same_bits(tmp_path, stop_at):
    """The run is interrupted before, at and after the end of guidance, which comes after 6 of 18 steps."""
    changes = {"guidance.stop": "epoch:1", "log.save_every_steps": 1}
    train_run(tiny_config(tmp_path, run_dir=str(tmp_path / "whole"), **changes))
    config = tiny_config(tmp_path, **changes)
    with pytest.raises(Interrupted):
        train_run(config, interrupt=StopAt(stop_at))
    train_run(config, resume=True)
    assert_same_weights(tmp_path / "run", tmp_path / "whole")
    assert epochs(tmp_path / "run") == epochs(tmp_path / "whole")


def test_trials_of_a_group_that_end_guidance_at_different_epochs_equal_the_same_alone(tmp_path):
    stops = ("epoch:1", "epoch:2", "never")
    configs = [tiny_config(tmp_path, run_dir=str(tmp_path / f"group{i}"), **{"guidance.stop": stop, "data.seed": 1})
               for i, stop in enumerate(stops)]  # fmt: skip
    outcomes = run_group(configs, InterruptFlag())
    assert [outcome.status for outcome in outcomes] == ["complete"] * 3
    for i, config in enumerate(configs):
        train_run(replace(config, {"run_dir": str(tmp_path / f"alone{i}")}))
        assert_same_weights(tmp_path / f"group{i}", tmp_path / f"alone{i}")


@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_a_distilled_student_keeps_the_teachers_logits(tmp_path, teacher_calls, mode):
    train_run(tiny_config(tmp_path, **{"guidance.stop": "epoch:1", "distill.mode": mode}))
    rows = epochs(tmp_path / "run")
    assert [row["guidance_loss"] > 0 for row in rows] == [True, False, False]
    assert all(row["distill_loss"] > 0 for row in rows) and len(teacher_calls) == rows[-1]["step"]


@pytest.mark.parametrize(
    "changes",
    [{"teacher.targets": "cached", "data.views": 2, "teacher.bn": "running"},
     {"teacher.targets": "offline", "teacher.bn": "running"}],
    ids=["cached", "offline"],
)  # fmt: skip
def test_stored_targets_end_too(tmp_path, changes):
    train_run(tiny_config(tmp_path, **{"guidance.stop": "epoch:2", **changes}))
    assert [row["guidance_loss"] > 0 for row in epochs(tmp_path / "run")] == [True, True, False]


def test_the_adaptive_rule_takes_the_losses_of_the_run(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("lgfast.guidance.stopping.AdaptiveStop.is_over", lambda self: seen.append(list(self.losses)))
    train_run(tiny_config(tmp_path, **{"guidance.stop": "adaptive"}))
    losses = [row["guidance_loss"] for row in epochs(tmp_path / "run")]
    assert seen == [losses[:1], losses[:2], losses]


@pytest.mark.parametrize("stop", ["", "epoch", "epoch:", "epoch:0", "epoch:-3", "epoch:2.5", "sometimes"])
def test_other_rules_are_refused_by_name(stop):
    with pytest.raises(ValueError, match=r"guidance\.stop"):
        replace(Config(), {"guidance.stop": stop})


def test_a_resumed_run_s_checkpoint_holds_the_history(tmp_path):
    config = tiny_config(tmp_path, **{"guidance.stop": "relative"})
    train_run(config)
    path = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1] / "resume.pt"
    state = torch.load(path, weights_only=False)
    assert state["progress"]["guidance_losses"] == pytest.approx(
        [row["guidance_loss"] for row in epochs(tmp_path / "run")]
    )
