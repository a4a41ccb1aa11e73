"""A run that is killed or interrupted, and resumed, equals one that never stopped, bit for bit."""

import os
import signal
from pathlib import Path

import pytest
import torch

import lgfast.assembly.run as run_module
from lgfast.assembly.run import train_run
from lgfast.assembly.run_folder import resume_config, run_folder
from lgfast.config import dump_yaml, replace
from lgfast.records.checkpoint import CheckpointStore, read_weights
from lgfast.runtime.interrupt import Interrupted, InterruptFlag
from lgfast.sweep.group import run_group
from lgfast.train import main
from tests.processes import TrainProcess
from tests.runs import StopAt, metrics, tiny_config, wait_for_step

pytestmark = pytest.mark.usefixtures("one_thread")
RUN = {"epochs": 4, "log.every_steps": 1, "log.save_every_steps": 4}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """An uninterrupted run; its teacher is shared by the others. All run on one thread: sums depend on the number."""
    tmp_path = tmp_path_factory.mktemp("reference")
    torch.set_num_threads(1)
    config = tiny_config(tmp_path, **RUN)
    return config, train_run(config)


def assert_same_run(config, expected, run_dir):
    assert metrics(run_dir) == metrics(expected.run_dir)
    for name in ("best.safetensors", "last.safetensors"):
        state, _ = read_weights(run_dir / name)
        wanted, _ = read_weights(Path(expected.run_dir) / name)
        assert state.keys() == wanted.keys()
        assert all(torch.equal(state[key], wanted[key]) for key in wanted)
    _, ours = CheckpointStore(run_dir).load_newest()
    _, theirs = CheckpointStore(Path(expected.run_dir)).load_newest()
    torch.testing.assert_close(ours["optimizer"]["state"], theirs["optimizer"]["state"], rtol=0, atol=0)
    assert ours["guidance"].keys() == theirs["guidance"].keys()
    assert all(torch.equal(ours["guidance"][key], theirs["guidance"][key]) for key in theirs["guidance"])


@pytest.mark.parametrize("step", [3, 13])  # before the first checkpoint; within an epoch
def test_killed_run_resumes_exactly(reference, tmp_path, step):
    config, expected = reference
    run_dir = tmp_path / "killed"
    file = tmp_path / "config.yaml"
    file.write_text(dump_yaml(replace(config, {"run_dir": str(run_dir)})))
    process = TrainProcess(tmp_path, "--config", str(file))
    wait_for_step(run_dir, step, process)
    process.send(signal.SIGKILL)
    assert process.finish()[0] == -signal.SIGKILL
    code, _, err = TrainProcess(tmp_path, "--resume", str(run_dir)).finish()
    assert code == 0, err
    assert_same_run(config, expected, run_dir)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_saves_and_resumes_exactly(reference, tmp_path, number):
    config, expected = reference
    run_dir = tmp_path / "stopped"
    file = tmp_path / "config.yaml"
    file.write_text(dump_yaml(replace(config, {"run_dir": str(run_dir), "log.save_every_steps": 0})))
    process = TrainProcess(tmp_path, "--config", str(file))
    wait_for_step(run_dir, 8, process)
    process.send(number)
    code, _, err = process.finish()
    assert code == 128 + number
    assert f"continue with: python -m lgfast.train --resume {run_dir}" in err
    _, state = CheckpointStore(run_dir).load_newest()
    assert state["progress"]["step"] >= 8
    code, _, err = TrainProcess(tmp_path, "--resume", str(run_dir)).finish()
    assert code == 0, err
    assert_same_run(config, expected, run_dir)


def test_stopping_in_the_teacher_asks_for_the_same_command(reference, tmp_path):
    config, expected = reference
    config = replace(config, {"run_dir": str(tmp_path / "run"), "teacher.cache": str(tmp_path / "cache")})
    with pytest.raises(Interrupted, match=r"cache/teachers/.*; continue with the same command: the teacher goes on"):
        train_run(config, interrupt=StopAt(0))
    assert not (tmp_path / "run").exists()
    assert train_run(config).teacher_test_top1 == expected.teacher_test_top1
    assert metrics(tmp_path / "run") == metrics(expected.run_dir)


def test_changed_recipe_is_refused(reference):
    config, _ = reference
    with pytest.raises(ValueError, match=r"--resume: optim.lr cannot change in a resumed run"):
        resume_config(config.run_dir, {"optim.lr": 1e-5})


def test_free_keys_may_change(reference):
    config, _ = reference
    assert resume_config(config.run_dir, {"data.workers": 2, "log.every_steps": 9}).data.workers == 2


def test_changed_images_are_refused(reference, monkeypatch):
    config, _ = reference
    splits = run_module.load_splits(config)
    smaller = run_module.DataSplits(splits.train.limit(80), splits.select, splits.test)
    monkeypatch.setattr(run_module, "load_splits", lambda _: smaller)
    with pytest.raises(ValueError, match="the training images changed since this run was saved"):
        train_run(replace(config, {"teacher.checkpoint": str(reference[1].teacher_run)}), resume=True)


def test_resuming_a_finished_run_says_so(reference, capsys, monkeypatch):
    _, expected = reference
    assert main(["--resume", expected.run_dir]) == 0
    assert "already complete" in capsys.readouterr().out
    monkeypatch.setenv("RANK", "1")  # of the ranks that torchrun starts the first one alone speaks
    assert main(["--resume", expected.run_dir]) == 0
    assert capsys.readouterr().out == ""


def test_resuming_a_folder_without_a_run_is_refused(tmp_path, capsys):
    assert main(["--resume", str(tmp_path)]) == 2
    assert "is no folder of a run or a sweep" in capsys.readouterr().err


def test_a_run_that_another_process_trains_is_left_alone(reference, tmp_path, capsys):
    config, _ = reference
    run_dir = tmp_path / "held"
    held = replace(config, {"run_dir": str(run_dir), "max_steps": 3})
    with run_folder(held, resume=False):  # as the process that trains it holds it
        before = sorted(run_dir.iterdir())
        assert main(["--resume", str(run_dir)]) == 2
        message = f"error: run_dir: another process trains in {run_dir} (process {os.getpid()} on "
        assert capsys.readouterr().err.startswith(message)
        with pytest.raises(ValueError, match="already holds a run"):
            train_run(held)
        (outcome,) = run_group([held], InterruptFlag())
        assert outcome.status == "failed" and "another process trains in" in outcome.error
        assert sorted(run_dir.iterdir()) == before
    assert main(["--resume", str(run_dir)]) == 0


def test_what_a_killed_process_left_half_written_is_removed(reference, tmp_path):
    config, _ = reference
    leftovers = [tmp_path / ".best.safetensors.12ab34cd.tmp", tmp_path / "checkpoints" / ".step_00000002.12ab34cd.tmp"]
    leftovers.append(tmp_path / "test" / ".logits.npz.12ab34cd.tmp")
    for leftover in leftovers[1:]:
        leftover.mkdir(parents=True)
    leftovers[0].write_text("half")
    train_run(replace(config, {"run_dir": str(tmp_path), "max_steps": 3}), resume=True)
    assert not any(leftover.exists() for leftover in leftovers)


@pytest.mark.parametrize(("content", "message"), [("", "is not complete"), (None, "no folder of a run or a sweep")])
def test_a_run_without_its_configuration_does_not_train_the_default(reference, tmp_path, capsys, content, message):
    config, _ = reference
    train_run(replace(config, {"run_dir": str(tmp_path), "max_steps": 3}))
    (tmp_path / "result.json").unlink()
    (tmp_path / "config.yaml").unlink() if content is None else (tmp_path / "config.yaml").write_text(content)
    assert main(["--resume", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_a_run_is_not_continued_under_another_configuration(reference, tmp_path):
    config, _ = reference
    config = replace(config, {"run_dir": str(tmp_path)})
    with pytest.raises(Interrupted):
        train_run(config, interrupt=StopAt(3))
    with pytest.raises(ValueError, match=r"--resume: model\.drop_path_rate is 0\.5 now, and was 0\.2 when .*model"):
        train_run(replace(config, {"model.drop_path_rate": 0.5}), resume=True)
