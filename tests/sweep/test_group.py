"""Students of a group end with the same bits as the same runs alone."""

from pathlib import Path

import pytest
import torch

from lgfast.assembly.run import train_run
from lgfast.config import replace
from lgfast.guidance import Teacher
from lgfast.records.checkpoint import CheckpointStore, read_weights
from lgfast.runtime.interrupt import InterruptFlag
from lgfast.sweep.group import group_key, run_group
from tests.runs import metrics, tiny_config

VARIANTS = {
    "plain": {},
    "lr": {"optim.lr": 1e-3, "optim.per_step": "false"},
    "sgd": {"optim.name": "sgd", "optim.lr": 0.05, "optim.clip_norm": 1.0},
    "unguided": {"guidance.weight": 0.0},
    "distilled": {"guidance.weight": 0.0, "distill.mode": "soft", "distill.temperature": 2.0},
    "seed": {"seed": 7, "model.drop_path_rate": 0.4},
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The variants as runs of their own, all with the views of data.seed=5."""
    tmp_path = tmp_path_factory.mktemp("alone")
    configs = {}
    for name, changes in VARIANTS.items():
        changes = {"data.seed": 5, "epochs": 2, "log.save_every_steps": 3} | changes
        configs[name] = replace(tiny_config(tmp_path, run_dir=str(tmp_path / name)), changes)
        train_run(configs[name])
    return configs


def moved(configs, folder: Path):
    return [replace(config, {"run_dir": str(folder / name)}) for name, config in configs.items()]


def assert_same_runs(configs, folder: Path):
    for name, config in configs.items():
        assert metrics(folder / name) == metrics(config.run_dir)
        for file in ("best.safetensors", "last.safetensors"):
            ours, theirs = read_weights(folder / name / file)[0], read_weights(Path(config.run_dir) / file)[0]
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[key], theirs[key]) for key in theirs), (name, file)
        ours, theirs = (CheckpointStore(Path(f)).load_newest()[1] for f in (folder / name, config.run_dir))
        for part in ("guidance", "optimizer", "ranks", "loader"):
            torch.testing.assert_close(ours[part], theirs[part], rtol=0, atol=0)


def test_group_equals_runs_alone(alone, tmp_path):
    outcomes = run_group(moved(alone, tmp_path), InterruptFlag())
    assert [outcome.status for outcome in outcomes] == ["complete"] * len(alone)
    assert_same_runs(alone, tmp_path)


def test_interrupted_group_continues_exactly_even_when_students_stand_apart(alone, tmp_path):
    flag, seen = InterruptFlag(), []

    def stop_at_third_report(lane, row):
        seen.append(lane)
        flag.requested = len(seen) == 3
        return False

    outcomes = run_group(moved(alone, tmp_path), flag, stop_at_third_report)
    assert {outcome.status for outcome in outcomes} == {"saved"}
    assert len({outcome.progress.step for outcome in outcomes}) > 1  # some stopped within the next epoch
    outcomes = run_group(moved(alone, tmp_path), InterruptFlag())
    assert {outcome.status for outcome in outcomes} == {"complete"}
    assert_same_runs(alone, tmp_path)


def test_one_student_can_fail_or_be_pruned_without_touching_the_others(alone, tmp_path):
    configs = {"plain": alone["plain"], "diverges": replace(alone["plain"], {"optim.name": "sgd", "optim.lr": 1e30})}
    configs |= {"seed": alone["seed"], "bad": replace(alone["plain"], {"optim.name": "no-such-optimizer"})}
    pruned = str(tmp_path / "seed")
    outcomes = run_group(moved(configs, tmp_path), InterruptFlag(), lambda lane, row: lane.config.run_dir == pruned)
    assert [outcome.status for outcome in outcomes] == ["complete", "failed", "pruned", "failed"]
    assert "the loss is not finite" in outcomes[1].error
    assert "no-such-optimizer" in outcomes[3].error and outcomes[3].progress is None
    assert_same_runs({"plain": alone["plain"]}, tmp_path)


def test_teacher_runs_once_a_batch(alone, tmp_path, monkeypatch):
    calls, outputs = [], Teacher.outputs
    monkeypatch.setattr(Teacher, "outputs", lambda self, images: calls.append(len(images)) or outputs(self, images))
    run_group([replace(config, {"max_steps": 3}) for config in moved(alone, tmp_path)], InterruptFlag())
    assert calls.count(16) == 3  # batches of 16; the width of the stages is found with a batch of 2


@pytest.mark.parametrize(
    "changes", [{"data.batch_size": 8}, {"model.depth": 2}, {"teacher.bn": "running"}, {"data.seed": 6}]
)
def test_what_shapes_the_batch_or_the_teacher_is_not_shared(alone, changes):
    assert group_key(replace(alone["plain"], changes)) != group_key(alone["plain"])
    with pytest.raises(ValueError, match="a group shares everything but"):
        run_group([alone["plain"], replace(alone["plain"], changes)], InterruptFlag())


def test_seeds_share_views_only_where_the_views_have_their_own_seed(alone):
    own = replace(alone["plain"], {"data.seed": "none"})
    assert group_key(replace(own, {"seed": 9})) != group_key(own)
    assert group_key(replace(alone["plain"], {"seed": 9})) == group_key(alone["plain"])
