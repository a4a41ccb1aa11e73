"""bench_sweep: what is compared is the same work, shared or not."""

import pytest
import torch

from benchmarks.bench_sweep import Launch, launches
from benchmarks.sweep_trials import Group, trial_configs
from lgfast.assembly.images import load_splits
from lgfast.config import replace
from lgfast.sweep.probe import untrained_teacher

pytestmark = pytest.mark.usefixtures("one_thread")


def group(folder, students, is_shared):
    return Group(trial_configs("digits", students, "cpu", folder), is_shared)


def test_the_first_of_two_students_has_the_same_bits_as_a_trial_alone(tmp_path):
    alone = group(tmp_path / "1", 1, False)
    before = alone.digest()
    alone.run(2)
    together = group(tmp_path / "2", 2, True)
    assert together.digest() == before
    together.run(2)
    assert together.digest() == alone.digest() != before
    shares = together.shares(1)
    assert sum(shares.values()) == pytest.approx(1) and all(0 < share < 1 for share in shares.values())


def test_a_student_that_ends_is_no_fast_one(tmp_path, monkeypatch):
    trials = group(tmp_path, 2, True)

    def exhaust(batch):
        raise torch.OutOfMemoryError("no room for a second student")

    monkeypatch.setattr(trials.loop.lanes[1].step, "run", exhaust)
    with pytest.raises(RuntimeError, match="no room for a second student"):
        trials.run(1)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_untrained_teacher_computes_as_that_of_a_run(tmp_path, precision, dtype):
    config = replace(trial_configs("digits", 1, "cpu", tmp_path)[0], {"precision": precision})
    assert untrained_teacher(config, load_splits(config), torch.device("cpu")).dtype == dtype


def test_cores_and_students_are_split_among_processes():
    found = launches([1, 2, 4, 8], 2, "cpu")
    assert found["one_at_a_time", 1] == Launch((1,), 2)
    assert found["process_each", 2] == Launch((1, 1), 1)
    assert found["group", 8] == Launch((8,), 2)
    assert found["groups", 8] == Launch((4, 4), 1)
    assert ("groups", 2) not in found  # would be two processes of one student


def test_one_gpu_is_shared_by_few_processes():
    found = launches([1, 2, 4, 8], 8, "cuda")
    assert [key for key in found if key[0] == "process_each"] == [("process_each", 2), ("process_each", 4)]
    assert found["process_each", 4] == Launch((1, 1, 1, 1), 2)


def test_many_students_do_fewer_steps_but_not_too_few():
    assert [Launch((count,), 2).steps(32) for count in (1, 2, 16)] == [32, 16, 4]
    assert Launch((16,), 2).steps(1) == 1
