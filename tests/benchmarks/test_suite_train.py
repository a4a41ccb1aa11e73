"""The training part: a run stopped at the limit of one call goes on in the next, its teacher first."""

import csv
import json
import signal

import pytest

from benchmarks.suite import parts, train
from lgfast.records.run_log import read_epochs
from lgfast.training.stopping import StopVote


@pytest.fixture
def main(tmp_path):
    text = f"--recipe digits --teacher digits-resnet8 --runs RUNS --results RESULTS {parts.TINY} {parts.TINY_STUDENT}"
    places = {"RUNS": str(tmp_path / "runs"), "RESULTS": str(tmp_path / "results")}
    words = [*text.split(), "--set", "guidance.student_layers=0,1,2"]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield lambda: train.main([places.get(word, word) for word in words])
    for number, handler in handlers.items():
        signal.signal(number, handler)


def terminated(vote: StopVote, step: int) -> bool:
    """As where SIGTERM came during the step."""
    vote.interrupt.requested, vote.interrupt.signal_number = True, signal.SIGTERM
    return True


def test_teacher_and_student_go_on_over_several_calls(main, tmp_path, monkeypatch):
    teacher, student = tmp_path / "runs" / "digits-resnet8", tmp_path / "runs" / "digits"
    with monkeypatch.context() as patch:
        patch.setattr(StopVote, "after_step", terminated)
        assert main() == 143  # the first step of the teacher
        assert list((teacher / "checkpoints").iterdir()) and not student.exists()
    assert main() == 0
    (results,) = (tmp_path / "results").iterdir()
    (row,) = csv.DictReader((results / "table.csv").open())
    result = json.loads((student / "result.json").read_text())
    assert (row["student"], row["variant"], float(row["best_top1"])) == ("digits", "guided", result["test_top1"])
    assert float(row["minutes"]) * 60 >= sum(epoch.seconds for epoch in read_epochs(student))
    assert result["teacher_run"] == str(teacher) and result["teacher_test_top1"] is not None
    for name in ("digits", "digits-resnet8"):
        assert (results / f"{name}.metrics.jsonl").read_text()
    before = (student / "result.json").stat().st_mtime_ns
    assert main() == 0 and (student / "result.json").stat().st_mtime_ns == before  # finished runs are left alone


def test_a_student_is_named_as_lgfast_reproduce_names_it():
    cells = {name: train.cell_of(name) for name in ("cifar100-deit-ti-guided", "digits", "digits-base")}
    assert {name: cell.recipe for name, cell in cells.items()} == {name: name for name in cells}
    assert train.cell_of("cifar100-resnet56") is None  # a teacher
