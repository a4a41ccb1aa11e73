"""The table's cells find their recipes, its figures are those of the runs, and a second call only reads."""

import csv
import multiprocessing
import os
import re
import signal
import statistics
import time

import pytest

from lgfast import reproduce
from lgfast.config import Config, published_top1, replace
from lgfast.records.result import read_result
from lgfast.records.run_log import read_curve
from lgfast.reports.compare import compare
from lgfast.reports.runs import find_runs, group, read_run
from lgfast.reproduce import PAPER_ROWS, Cell, main
from lgfast.runtime.interrupt import Interrupted, InterruptFlag
from tests.runs import TINY, teacher

# README of the paper's code, CIFAR-100 top-1 (%), base and guided.
PUBLISHED = {
    "deit-ti": (65.08, 78.15), "t2t-vit-7": (69.37, 78.35), "pit-ti": (73.58, 78.48),
    "pvt-ti": (69.22, 77.07), "pvtv2-b0": (77.44, 79.30), "convit-ti": (75.32, 78.95),
}  # fmt: skip


def test_rows_carry_the_published_figures():
    assert set(PAPER_ROWS) == set(PUBLISHED)
    for row, figures in PUBLISHED.items():
        assert tuple(published_top1(Cell(row, variant).recipe) for variant in ("base", "guided")) == figures
    assert published_top1("digits") is None


def test_unknown_row_is_named():
    with pytest.raises(ValueError, match="--rows: no recipe deit-base or cifar100-deit-base"):
        _ = Cell("deit", "base").recipe


@pytest.mark.slow
def test_table_is_made_from_the_runs_and_made_again_from_disk(forked_at_once, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    changes = {k: v for k, v in TINY.items() if k not in ("epochs", "guidance.student_layers", "model.depth")}
    changes |= {"teacher.cache": tmp_path / "cache", "teacher.recipe": teacher(tmp_path), "log.report": "false"}
    options = "--rows digits --seeds 3 4 --workers 2 --epochs 1 --out"
    command = [*options.split(), str(tmp_path / "out")]
    command += [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    assert main(command) == 0
    table = table_lines(capsys.readouterr().out)
    with (tmp_path / "out" / "table.csv").open() as file:
        base, guided = csv.DictReader(file)
    results = [read_result(tmp_path / "out" / f"digits-guided-seed{seed}") for seed in (3, 4)]
    assert float(guided["best_top1"]) == pytest.approx(statistics.mean(r.test_top1 for r in results))
    assert float(guided["best_std"]) == pytest.approx(statistics.stdev(r.test_top1 for r in results))
    assert (base["variant"], base["seeds"]) == ("base", "2")
    assert {"epochs=1", "data.train_limit=120"} <= set(base["changes"].split())  # the table tells it from the recipe's
    assert "teacher.cache" not in base["changes"]
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert read_curve(tmp_path / "out" / "digits-base-seed3")[0] == [1]
    rows = compare(group([read_run(folder) for folder in find_runs([tmp_path / "out"])]))
    by_runs = sorted((row["test_top1"], row["test_top1_std"]) for row in rows)
    assert by_runs == sorted((float(row["best_top1"]), float(row["best_std"])) for row in (base, guided))

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/result.json")}
    assert main(command) == 0
    assert table_lines(capsys.readouterr().out) == table
    assert len(table) == 4
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/result.json")}

    for path in before:  # as after runs that were interrupted in their last hour
        path.write_text(re.sub(r'"seconds": [\d.]+', '"seconds": 0.5', path.read_text()))
        (path.parent / "summary.csv").write_text("epoch,val_top1,seconds\n1,50,3600\n")
    assert main(command) == 0
    assert all(line.endswith("| 60.0 |") for line in table_lines(capsys.readouterr().out)[2:])


def table_lines(output):
    return [line for line in output.splitlines() if line.startswith("|")]


def test_bad_key_is_an_error(tmp_path, capsys):
    assert main(["--rows", "digits", "--set", "optim.lrr=1", "--out", str(tmp_path)]) == 2
    assert "did you mean 'optim.lr'" in capsys.readouterr().err
    assert main(["--rows", "digits", "--set", "optim.lr", "--out", str(tmp_path)]) == 2
    assert "--set: expected KEY=VALUE, got 'optim.lr'" in capsys.readouterr().err
    assert main(["--rows", "digits", "--workers", "0", "--out", str(tmp_path)]) == 2
    assert "--workers: expected a number above 0, got 0" in capsys.readouterr().err


def wait_for_ctrl_c(config, threads):
    """Stands in for a run: it is at work until the user stops it."""
    os.write(int(config.name), b".")
    with InterruptFlag().installed(repeat_ends=False) as interrupt:
        while not interrupt.requested:
            time.sleep(0.01)
    raise Interrupted("saved", "go on")


def test_ctrl_c_reaches_the_runs_at_work_and_ends_in_a_line(tmp_path, monkeypatch, capsys):
    fork = multiprocessing.get_context("fork")  # which knows the stand-in
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: fork)
    monkeypatch.setattr(reproduce, "run_one", wait_for_ctrl_c)
    begun, told = os.pipe()
    monkeypatch.setattr(reproduce, "cell_config", lambda *_: replace(Config(), {"name": str(told)}))

    def once_both_are_at_work(futures, *rest):
        if not os.get_blocking(begun):
            return wait(futures, *rest)
        assert os.read(begun, 1) + os.read(begun, 1) == b".."
        os.set_blocking(begun, False)
        os.kill(os.getpid(), signal.SIGTERM)
        return wait(futures, *rest)

    wait = reproduce.wait
    monkeypatch.setattr(reproduce, "wait", once_both_are_at_work)
    assert main(["--rows", "digits", "--seeds", "1", "2", "--workers", "2", "--out", str(tmp_path)]) == 143
    assert capsys.readouterr().err == "stopped; unfinished runs are saved; the same command goes on\n"
