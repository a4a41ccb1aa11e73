"""`lgfast.train.main` with sweep options, in this process, on tiny runs."""

import csv
import errno
import itertools
import json
import re
import signal
import subprocess

import pytest
import torch
from optuna.storages.journal import JournalFileBackend

from lgfast.config import dump_yaml, load_recipe, load_yaml, replace
from lgfast.records import files
from lgfast.sweep import results, worker
from lgfast.sweep.dry_run import preview
from lgfast.sweep.space import read_space
from lgfast.sweep.study import Plan, Study
from lgfast.train import main
from lgfast.training.lane import Lane
from tests.runs import tiny_config

GRID = ["--sweep", "optim.lr=1e-3,4e-3", "--sweep", "seed=0,1"]


@pytest.fixture(autouse=True)
def signals():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A configuration file; its teacher is shared by the tests."""
    tmp_path = tmp_path_factory.mktemp("base")
    path = tmp_path / "base.yaml"
    config = replace(tiny_config(tmp_path), {"run_dir": "", "epochs": 2, "data.seed": 0})
    path.write_text(dump_yaml(config))
    return str(path)


def rows(out):
    with (out / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


def test_grid_gives_table_best_configuration_and_page(base, tmp_path, capsys, monkeypatch):
    tested, evaluate = [], results.evaluate_checkpoint
    monkeypatch.setattr(results, "evaluate_checkpoint", lambda *a, **k: tested.append(a[0]) or evaluate(*a, **k))
    out = tmp_path / "out"
    assert main(["--config", base, *GRID, "--out", str(out)]) == 0
    assert [(row["setting"], row["seed"], row["state"]) for row in rows(out)] == [
        (s, seed, "complete") for s in "01" for seed in "01"
    ]
    assert {float(row["optim.lr"]) for row in rows(out)} == {1e-3, 4e-3}
    report = json.loads((out / "results.json").read_text())
    winner = report["settings"][0]
    assert winner["mean"] == max(row["mean"] for row in report["settings"])
    assert len(tested) == 2 and all(f"{winner['setting']:03d}-seed" in folder for folder in tested)
    best = load_yaml(out / "best.yaml")
    assert best == replace(load_yaml(base), {"optim.lr": winner["changes"]["optim.lr"], "seed": 0})
    page = (out / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and "http" not in page  # one key: nothing to weigh
    assert (out / "curves.png").is_file() and (out / "parallel.png").is_file()
    assert "best: setting" in capsys.readouterr().out
    assert main(["--resume", str(out)]) == 0  # nothing left: the test images stay untouched
    assert len(tested) == 2


def test_budget_saves_what_runs_and_resume_finishes_it(base, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["--config", base, *GRID, "--out", str(out), "--budget", "0s"]) == 0
    assert {row["state"] for row in rows(out)} == {"waiting"}
    assert f"continue with: python -m lgfast.train --resume {out}" in capsys.readouterr().err
    assert main(["--resume", str(out)]) == 0
    assert {row["state"] for row in rows(out)} == {"complete"}


def test_sampled_space_with_pruning(base, tmp_path):
    file, out = tmp_path / "space.yaml", tmp_path / "out"
    file.write_text(
        "optim.lr: {low: 1.0e-4, high: 1.0e-2, log: true}\n"
        "optim.name: [adamw, sgd]\n"
        "optim.momentum: {low: 0.5, high: 0.9, when: {optim.name: sgd}}\n"
    )
    arguments = ["--sweep-space", str(file), "--trials", "5", "--pruner", "hyperband", "--group", "3"]
    assert main(["--config", base, *arguments, "--out", str(out)]) == 0
    found = rows(out)
    assert len(found) == 5 and {row["state"] for row in found} <= {"complete", "pruned"}
    assert all((row["optim.momentum"] != "") == (row["optim.name"] == "sgd") for row in found)


def test_a_sweep_without_a_success_says_so(base, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--config", base, "--sweep", "model.name=no_such_model,nor_this_one", "--out", str(out)]
    assert main(arguments) == 1
    assert "no trial succeeded" in capsys.readouterr().err
    assert [row["state"] for row in rows(out)] == ["failed", "failed"]


def test_a_bad_model_fails_its_trials_and_leaves_the_rest(base, tmp_path):
    out = tmp_path / "out"
    assert main(["--config", base, "--sweep", "model.name=no_such_model,deit_tiny_patch16_224", "--out", str(out)]) == 0
    states = {row["model.name"]: (row["state"], row["error"]) for row in rows(out)}
    assert states["deit_tiny_patch16_224"] == ("complete", "")
    assert states["no_such_model"][0] == "failed" and "no_such_model" in states["no_such_model"][1]


@pytest.mark.parametrize(("fits", "states"), [(1, {"complete"}), (0, {"failed"})])
def test_trials_that_do_not_fit_together_run_in_smaller_groups(base, tmp_path, capsys, monkeypatch, fits, states):
    sizes = []

    def run(configs, *arguments):
        sizes.append(len(configs))
        if len(configs) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return run_group(configs, *arguments)

    run_group = worker.run_group
    monkeypatch.setattr(worker, "run_group", run)
    out = tmp_path / "out"
    assert main(["--config", base, "--set", "epochs=1", *GRID, "--out", str(out)]) == (0 if fits else 1)
    assert sizes == [4, 2, 1, 1, 1, 1]
    assert "4 trials at a time do not fit the GPU's memory; going on with 2" in capsys.readouterr().out
    assert {row["state"] for row in rows(out)} == states
    assert all(("out of memory" in row["error"]) == (not fits) for row in rows(out))


@pytest.mark.parametrize("text", ["5", "5 m", "1d", "-3s", "m", ""])
def test_a_budget_without_its_unit_is_refused(base, tmp_path, capsys, text):
    assert main(["--config", base, *GRID, "--out", str(tmp_path / "out"), f"--budget={text}"]) == 2
    assert f"expected a time with its unit, such as 90s, 30m or 2h, got {text!r}" in capsys.readouterr().err


def test_a_sampled_sweep_is_previewed_with_the_bases_own_values_first(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text("optim.lr: {low: 1.0e-4, high: 1.0e-2, log: true}\noptim.name: [sgd, adamw]\n")
    config = load_recipe("digits")
    plan = Plan(config, read_space([], str(path), config), 3, "none", 2)
    first, *others = preview(plan.space, plan)
    assert first == {"optim.lr": config.optim.lr, "optim.name": "adamw"}
    assert len(others) == 2 and first not in others


def test_dry_run_prints_trials_and_time_and_leaves_nothing(base, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["--config", base, *GRID, "--out", str(out), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "2 settings x 2 seeds = 4 trials" in text
    assert "setting 1: optim.lr=0.004" in text
    assert re.search(r"measuring 1 of \d: some steps of 4 trials of one group\n", text)  # perhaps the teacher comes too
    assert "1 groups of up to 8; predicted" in text and "with 1 worker(s)" in text
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sweep", "optim.lrr=1"], "did you mean 'optim.lr'?"),
        (["--sweep", "optim.lr=fast"], "optim.lr: expected a number, got 'fast'"),
        ([*GRID, "--trials", "4"], "--sweep runs every combination"),
        ([*GRID, "--folds", "3"], "--folds: cross-validates one setting"),
        ([*GRID, "--optim.foo", "1"], "unknown configuration key 'optim.foo'"),
        (["--sweep-space", "none.yaml", "--trials", "4"], "none.yaml: cannot be read: No such file"),
        ([*GRID, "--workers-per-gpu", "2"], "torch sees no CUDA device here"),
        (["--study", "no.journal"], "no journal file no.journal"),
        (["--study", "sqlite:///empty.db"], "holds no sweep named 'lgfast'"),
        (["--sweep", "optim.lr=1e-3,,2e-3"], "a value between the commas is missing in 'optim.lr=1e-3,,2e-3'"),
        (["--sweep", "optim.lr=1e-3,0.001"], "optim.lr: the value 0.001 is given twice"),
        ([*GRID, "--resume", "somewhere"], "--resume continues a sweep as it was started; drop --sweep"),
        ([*GRID, "--study", "/dev/full"], "--study: /dev/full is a device or a pipe; name a journal file"),
        (["--study", "/dev/zero"], "--study: /dev/zero is a device or a pipe; name a journal file"),
        (
            [*GRID, "--study", "postgresql:/me:s3cret@host/base"],
            "URL that begins with postgresql: goes on with two slashes",
        ),
        (["--study", "mysql+pymysql:me:s3cret@host"], "URL that begins with mysql+pymysql: goes on with two slashes"),
        ([*GRID, "--study", "."], "--study: . is a folder; name a journal file, e.g. study.journal"),
        (["--study", "x.journal", "--trials", "4"], "--trials is fixed when a sweep is started"),
        (["--study", "x.journal", "--group", "8"], "--group is fixed when a sweep is started"),
    ],
)
def test_mistakes_fail_before_anything_starts(base, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lgfast.sweep.study.READY_S", 0.1)
    config = [] if arguments[0] == "--study" else ["--config", base, "--out", "out"]
    assert main([*config, *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err and "s3cret" not in err
    assert not (tmp_path / "out" / "runs").exists() and not list(tmp_path.rglob("*s3cret*"))


@pytest.mark.parametrize(
    "arguments", [["--trials", "3"], ["--out", "x"], ["--workers", "2"], ["--dry-run"], ["--budget", "1m"]]
)
def test_a_single_run_refuses_the_options_of_sweeps(base, capsys, monkeypatch, arguments):
    monkeypatch.setattr("lgfast.assembly.run.train_run", lambda *_: pytest.fail("trains"))
    assert main(["--config", base, *arguments]) == 2
    assert f"error: {arguments[0]} is an option of sweeps; add --sweep KEY=V1,V2" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "{}", "[1]"])
def test_a_damaged_sweep_file_names_the_way_back(tmp_path, capsys, text):
    (tmp_path / "sweep.json").write_text(text)
    assert main(["--resume", str(tmp_path)]) == 2
    assert f"is damaged; name the study instead: --study {tmp_path}/study.journal --out {tmp_path}" in (
        capsys.readouterr().err
    )


def test_a_damaged_journal_names_its_line_and_goes_on_without_it(base, tmp_path, capsys):
    journal = tmp_path / "study.journal"
    start = ["--config", base, *GRID, "--budget", "0s", "--study", str(journal)]
    assert main(start) == 0
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join([*lines[:3], "half a li", *lines[3:]]))  # glued to the line after it
    assert main(start) == 2
    assert "line 4 cannot be read; keep a copy, remove that line" in capsys.readouterr().err
    journal.write_text("".join([*lines[:3], "half a line\n", *lines[3:]]))
    assert main(start) == 2
    journal.write_text("".join(lines))
    assert main(start) == 0


def test_half_a_last_line_is_dropped_and_the_sweep_goes_on(base, tmp_path):
    journal = tmp_path / "study.journal"
    start = ["--config", base, *GRID, "--budget", "0s", "--study", str(journal)]
    assert main(start) == 0
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 4, "wor')
    for _ in range(2):
        assert main(start) == 0
    assert journal.read_bytes().startswith(whole) and len(journal.read_bytes()) > len(whole)
    assert all(json.loads(line) for line in journal.read_text().splitlines())


@pytest.mark.parametrize("writes", range(6))
def test_a_disk_too_full_to_start_is_named_with_the_way_on(base, tmp_path, capsys, monkeypatch, writes):
    """The journal's first lines: study, direction, plan, trials."""
    out, count, append = tmp_path / "out", itertools.count(), JournalFileBackend.append_logs
    full = OSError(errno.ENOSPC, "No space left on device")
    start = ["--config", base, *GRID, "--budget", "0s", "--out", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr(JournalFileBackend, "append_logs", lambda *a: append(*a) if next(count) < writes else fail(full))
        assert main(start) == 2
    err = capsys.readouterr().err
    assert "No space left on device" in err and f"{out}/study.journal" in err and err.count("\n") == 1
    again = start if writes < 2 else ["--resume", str(out), "--budget", "0s"]
    assert (f"then continue with: python -m lgfast.train --resume {out}" in err) is (writes >= 2)
    assert main(again) == 0
    assert [row["state"] for row in rows(out)] == ["waiting"] * 4


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_sweep_stopped_while_its_trials_are_queued_goes_on(base, tmp_path, capsys, monkeypatch, count):
    """The sweep ends by Ctrl-C, or by a kill after it wrote its folder, its study, or a part of the trials."""
    out, queue, queued = tmp_path / "out", Study.queue, []

    def queue_and_press_ctrl_c(*arguments):
        queue(*arguments)
        queued.append(arguments)
        if len(queued) == count:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Study, "queue", queue_and_press_ctrl_c)
        assert main(["--config", base, *GRID, "--out", str(out)]) == 128 + signal.SIGINT
    assert len(queued) == count and len(rows(out)) == count
    assert f"stopped; continue with: python -m lgfast.train --resume {out}" in capsys.readouterr().err
    assert main(["--config", base, *GRID, "--out", str(out)]) == 2
    assert f"already holds a sweep; continue or join it with --resume {out}" in capsys.readouterr().err
    assert main(["--resume", str(out), "--budget", "0s"]) == 0
    assert [row["state"] for row in rows(out)] == ["waiting"] * 4


@pytest.mark.parametrize("lines", [0, 1, 2])
def test_a_start_that_was_killed_before_the_plan_was_written_can_be_repeated(base, tmp_path, monkeypatch, lines):
    monkeypatch.setattr("lgfast.sweep.study.ADOPT_S", 0.0)
    out = tmp_path / "out"
    start = ["--config", base, *GRID, "--out", str(out), "--budget", "0s"]
    assert main(start) == 0
    journal = out / "study.journal"
    whole = journal.read_text().splitlines(keepends=True)
    plan = next(number for number, line in enumerate(whole) if '"plan"' in line)
    journal.write_text("".join(whole[: min(lines, plan)]))
    assert main(start) == 0
    assert [row["state"] for row in rows(out)] == ["waiting"] * 4


def test_a_folder_of_another_study_is_not_started_in(base, tmp_path, capsys):
    out = tmp_path / "out"
    url = f"sqlite:///{tmp_path}/study.db"
    assert main(["--config", base, *GRID, "--out", str(out), "--study", url, "--budget", "0s"]) == 0
    assert main(["--config", base, *GRID, "--out", str(out)]) == 2
    assert f"--out: {out} holds the sweep kept in {url}; continue it with --resume {out}" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["file", "file/inside"])
def test_a_folder_that_cannot_be_written_is_named(base, tmp_path, capsys, place):
    (tmp_path / "file").write_text("")
    for extra in ([], ["--study", str(tmp_path / "study.journal"), "--budget", "0s"]):
        assert main(["--config", base, *GRID, "--out", str(tmp_path / place), *extra]) == 2
        err = capsys.readouterr().err
        assert "--out" in err and f"cannot write {tmp_path / place}" in err and "name a" in err


@pytest.mark.parametrize("place", ["checkpoint", "metrics"])
def test_a_full_disk_ends_the_sweep_and_no_trial(base, tmp_path, capsys, place):
    """Once there is room, --resume finishes what was running."""
    out, full = tmp_path / "out", OSError(errno.ENOSPC, "No space left on device")
    with pytest.MonkeyPatch.context() as patch:
        if place == "checkpoint":
            sync = files.sync
            patch.setattr(files, "sync", lambda path: fail(full) if "safetensors" in path.name else sync(path))
        else:
            patch.setattr(Lane, "finish_epoch", lambda *_: fail(full))
        assert main(["--config", base, *GRID, "--out", str(out)]) == 2
    err = capsys.readouterr().err
    assert "No space left on device" in err and f"then continue with: python -m lgfast.train --resume {out}" in err
    assert main(["--resume", str(out)]) == 0
    assert {row["state"] for row in rows(out)} == {"complete"}


def test_workers_that_end_early_are_quoted_and_the_sweep_is_not_done(base, tmp_path, capsys, monkeypatch):
    def start(command, environments, logs):
        logs.mkdir()
        (logs / "worker-0.log").write_text("something\nerror: no space\n")
        return [subprocess.Popen(["sh", "-c", f"exit {code}"]) for code in (2, 0)]

    monkeypatch.setattr("lgfast.sweep.command.start_workers", start)
    out = tmp_path / "out"
    assert main(["--config", base, *GRID, "--out", str(out), "--workers", "2"]) == 1
    err = capsys.readouterr().err
    assert f"worker 0 ended with code 2: error: no space; see {out}/workers/worker-0.log" in err
    assert "worker 1" not in err and f"not finished; continue with: python -m lgfast.train --resume {out}" in err


def fail(error):
    raise error


def test_a_study_with_another_plan_is_not_mixed(base, tmp_path, capsys):
    place = str(tmp_path / "study.journal")
    start = ["--config", base, "--study", place, "--budget", "0s"]
    assert main([*start, *GRID]) == 0
    assert main([*start, *GRID]) == 0  # the same sweep: joins
    assert main([*start, "--sweep", "optim.lr=5e-3"]) == 2
    assert "holds another sweep" in capsys.readouterr().err
    assert main(["--study", place, "--optim.lr", "1"]) == 2
    assert "optim.lr is fixed by the sweep" in capsys.readouterr().err
    assert main(["--config", base, *GRID, "--out", str(tmp_path)]) == 2
    assert f"join it with --resume {tmp_path}" in capsys.readouterr().err
