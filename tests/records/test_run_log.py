"""The log survives a rewind, and holds the same numbers in every form."""

import io
import json
import math
import re
import threading
import warnings
from pathlib import Path

import pytest

from lgfast.records.files import WriteError
from lgfast.records.run_log import MetricsLog


def test_log_rewinds_to_a_position(tmp_path):
    log = MetricsLog(tmp_path, tensorboard=False)
    log.write("train", 1, {"loss": 1.0})
    log.write_epoch({"epoch": 1, "loss": 1.0})
    position = log.position()
    log.write("train", 2, {"loss": math.nan})
    log.write_epoch({"epoch": 2, "loss": 2.0})
    log.rewind(position)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1]
    header, *lines = (tmp_path / "summary.csv").read_text().splitlines()
    assert header.startswith("epoch,lr,loss")
    assert lines == ["1,,1.0" + "," * (header.count(",") - 2)]


def test_non_finite_values_stay_valid_json(tmp_path):
    log = MetricsLog(tmp_path, tensorboard=False)
    log.write("train", 1, {"loss": math.inf})
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"] is None


def test_tensorboard_gets_the_same_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = MetricsLog(tmp_path, tensorboard=True)
    log.write("train", 3, {"loss": 1.5})
    log.write("train", 6, {"loss": 0.5})
    log.write("epoch", 6, {"name": "text is none of TensorBoard's", "top1": math.nan, "epoch": 2})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(3, 1.5), (6, 0.5)]
    assert set(events.Tags()["scalars"]) == {"train/loss", "epoch/top1", "epoch/epoch"}
    assert math.isnan(events.Scalars("epoch/top1")[0].value)


def test_a_log_that_is_not_closed_leaves_no_thread(tmp_path):
    """A sweep's pruner stops a run in this way."""
    before = threading.active_count()
    for number in range(3):
        MetricsLog(tmp_path / str(number)).write("train", 1, {"loss": 1.0})
    assert threading.active_count() == before


@pytest.mark.parametrize("place", ["folder", "first", "later"])
def test_tensorboard_that_fails_is_one_warning_and_ends_no_run(tmp_path, monkeypatch, place):
    if place == "folder":
        (tmp_path / "tensorboard").write_text("a file is in the way")
    with warnings.catch_warnings(record=True) as caught, monkeypatch.context() as patch:
        warnings.simplefilter("always")
        if place == "first":
            patch.setattr(Path, "open", lambda *_: io.open("/dev/full", "ab"))  # noqa: SIM115, UP020
        log = MetricsLog(tmp_path)
        patch.undo()
        for step in range(3):
            if place == "later" and step == 1:
                log.trackers[0]._file = Path("/dev/full").open("ab")  # noqa: SIM115
            log.write("train", step, {"loss": 1.0})
        log.close()
    (warning,) = (str(one.message) for one in caught if one.category is UserWarning)
    assert warning.startswith(f"no more TensorBoard events are written to {tmp_path}/tensorboard: ")
    assert "the run goes on" in warning
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [0, 1, 2]


def test_a_log_that_cannot_be_written_is_named(tmp_path):
    log = MetricsLog(tmp_path, tensorboard=False)
    for name in ("metrics.jsonl", "summary.csv"):
        (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(
        WriteError, match=re.escape(f"could not write {tmp_path}/metrics.jsonl: No space left on device")
    ):
        log.write("train", 1, {"loss": 1.0})
    with pytest.raises(WriteError, match=re.escape(f"could not write {tmp_path}/summary.csv: No space left on device")):
        log.write_epoch({"epoch": 1})
