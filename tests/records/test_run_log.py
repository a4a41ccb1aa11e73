"""The log survives a rewind, and holds the same numbers in every form."""

import json
import math

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
    assert lines == ["1,,1.0,,,,,,,,"]


def test_non_finite_values_stay_valid_json(tmp_path):
    log = MetricsLog(tmp_path, tensorboard=False)
    log.write("train", 1, {"loss": math.inf})
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"] is None


def test_tensorboard_gets_the_same_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = MetricsLog(tmp_path, tensorboard=True)
    log.write("train", 3, {"loss": 1.5})
    log.write("train", 6, {"loss": 0.5})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train/loss")
    assert [(event.step, event.value) for event in events] == [(3, 1.5), (6, 0.5)]
