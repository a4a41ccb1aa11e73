"""The suite, end to end on the CPU, and its parts: order, resume, failures, time limits, missing pieces."""

import csv
import importlib
import itertools
import json
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from benchmarks import gpu_suite, harness, row_file
from benchmarks.suite import build, gpu_tests, lease, parts, preflight, runner
from benchmarks.suite.parts import Command
from lgfast.config import load_recipe
from tests.clock import replaced_clock


@pytest.mark.slow
def test_dry_run_measures_every_part_on_the_cpu(forked_at_once, tmp_path):
    committed = sorted(row_file.RESULTS.rglob("*"))
    assert gpu_suite.main(["--dry-run", "--profile", "--out", str(tmp_path)]) == 0
    summary = (tmp_path / "summary.txt").read_text().splitlines()
    assert [line.split()[:2] for line in summary[1:]] == [
        [name, "done"] for name in parts.selected("", profile=True) if name in parts.DRY
    ]
    benches = {}
    for path in (tmp_path / "results").glob("*.csv"):
        rows = list(csv.DictReader(path.open()))
        assert rows and {row.get("device", "cpu") for row in rows} == {"cpu"}
        benches[path.stem.split("_", 2)[2]] = rows
    assert {
        "short_attention",
        "feature_mse",
        "augment",
        "loader",
        "optimizer",
        "train_step",
        "profile",
        "sweep",
        "fused_layers",
    } <= set(benches)
    assert all(float(row["copy_share"]) > 0 for row in benches["feature_mse"])
    assert sum(float(row["share"]) for row in benches["profile"]) == pytest.approx(1, abs=0.01)
    (table,) = (tmp_path / "results").glob("*_digits/table.csv")
    assert {row["variant"] for row in csv.DictReader(table.open())} == {"base", "guided"}
    assert (table.parent / "digits.metrics.jsonl").is_file()
    assert list((tmp_path / "results").glob("*_profile_trace.json.gz"))
    assert sorted(row_file.RESULTS.rglob("*")) == committed

    def written() -> dict[str, int]:
        return {path.stem: path.stat().st_mtime_ns for path in (tmp_path / "logs").iterdir()}

    before = written()
    assert gpu_suite.main(["--dry-run", "--out", str(tmp_path)]) == 0
    assert {name for name, when in written().items() if when != before[name]} == {"build"}  # all else is done


def test_without_a_gpu_nothing_is_measured_as_if_there_were_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu_suite.main(["--out", str(tmp_path)]) == 2
    assert "no CUDA device; --dry-run" in capsys.readouterr().err
    assert not (tmp_path / "results").exists() or not list((tmp_path / "results").iterdir())


SCRIPTS = {
    "good": "import pathlib, sys; pathlib.Path(sys.argv[1], sys.argv[2]).open('a').write('ran ')",
    "bad": "import sys; print('out of luck'); sys.exit(7)",
    "slow": "import time; time.sleep(60)",
    "parent": (
        "import pathlib, subprocess, sys, time; child = subprocess.Popen([sys.executable, '-m', 'slow'])\n"
        "pathlib.Path(sys.argv[1]).write_text(str(child.pid)); time.sleep(60)"
    ),
    "saving": (
        "import pathlib, signal, sys, time\n"
        "state = pathlib.Path(sys.argv[1])\n"
        "if state.exists(): sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, lambda *_: (state.write_text('half'), sys.exit(143)))\n"
        "state.with_suffix('.begun').touch(); time.sleep(60)"
    ),
}


@pytest.fixture
def suite(tmp_path):
    """A runner of real processes over small scripts, and the pieces it lacks."""
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    for name, text in SCRIPTS.items():
        (scripts / f"{name}.py").write_text(text)

    def make(limit_s: float = 30.0, absent: tuple[str, ...] = (), sources: str = ""):
        return runner.Runner(
            tmp_path / "out",
            lambda *arguments: runner.run_process(*arguments, (scripts,)),
            lambda: {"results": tmp_path / "out" / "results", "out": tmp_path},
            lambda command: [piece for piece in command.needs if piece in absent],
            limit_s,
            sources,
        )

    return make


def good(name: str) -> Command:
    return Command("good", f"{{results}} {name}")


def test_a_failing_command_is_reported_and_the_rest_go_on(suite):
    outcome = suite().run("x", [Command("bad"), good("a")])
    assert (outcome.status, outcome.files) == ("failed", ["a"])
    assert outcome.reason == "exit code 7: out of luck"
    later = suite().run("y", [good("b")])
    assert (later.status, gpu_suite.exit_code([outcome, later]), gpu_suite.exit_code([later])) == ("done", 1, 0)


def test_what_failed_is_tried_again_when_the_sources_have_changed(suite, tmp_path):
    counted = Command("counted", "{results}")
    (tmp_path / "scripts" / "counted.py").write_text(
        "import pathlib, sys; pathlib.Path(sys.argv[1], 'runs').open('a').write('x'); sys.exit(7)"
    )
    for sources, runs in (("a", "x"), ("a", "x"), ("b", "xx")):
        assert suite(sources=sources).run("x", [counted]).status == "failed"
        assert (tmp_path / "out" / "results" / "runs").read_text() == runs


def test_unfinished_comes_before_failed_in_the_exit_code(suite):
    outcome = suite(limit_s=60).run("x", [Command("bad"), Command("good", "{results} a", minutes=2)], left_s=50)
    assert outcome.status == "failed" and gpu_suite.exit_code([outcome]) == 3  # the same call goes on
    assert gpu_suite.exit_code([suite(limit_s=600).run("x", [Command("bad"), good("a")])]) == 1


def test_the_digest_of_the_sources_follows_them(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "ROOT", tmp_path)
    (tmp_path / "csrc" / "op").mkdir(parents=True)
    (tmp_path / "csrc" / "op" / "kernel.cuh").write_text("one")
    first = build.source_digest()
    (tmp_path / "csrc" / "op" / "notes.md").write_text("text")
    assert build.source_digest() == first
    (tmp_path / "csrc" / "op" / "kernel.cuh").write_text("two")
    assert build.source_digest() != first


def test_an_interrupted_suite_goes_on_where_it_stopped(suite, tmp_path):
    commands = [good("a"), Command("bad"), good("b")]
    suite().run("x", commands[:2])
    outcome = suite().run("x", commands)
    results = tmp_path / "out" / "results"
    assert (results / "a").read_text() == (results / "b").read_text() == "ran "  # each once
    assert (outcome.status, outcome.files) == ("failed", ["a", "b"])
    again = suite()
    again.state.forget("x")
    again.run("x", commands)
    assert (results / "a").read_text() == "ran ran "


@pytest.fixture
def limit_from(monkeypatch):
    """Let the time limit of a command begin when it has made a file: a busy machine may start it late."""
    wait = subprocess.Popen.wait

    def use(path: Path) -> None:
        def wait_from_file(process: subprocess.Popen, timeout: float | None = None) -> int:
            while process.poll() is None and not path.exists():
                time.sleep(0.01)
            return wait(process, timeout)

        monkeypatch.setattr(subprocess.Popen, "wait", wait_from_file)

    return use


def test_a_command_over_time_is_ended_with_its_children(suite, tmp_path, limit_from):
    limit_from(tmp_path / "child")
    outcome = suite(limit_s=0.5).run("x", [Command("parent", "{out}/child")])
    assert outcome.status == "over time" and gpu_suite.exit_code([outcome]) == 1
    assert "not finished after" in outcome.reason
    child = (tmp_path / "child").read_text()
    for _ in range(2000):  # ended, or a zombie that nobody has collected yet
        stat = Path("/proc", child, "stat")
        if not stat.exists() or " Z " in stat.read_text():
            return
        time.sleep(0.05)
    raise AssertionError("the child of a command over time still runs")


def test_what_met_the_limit_comes_last_next_time(suite, tmp_path, monkeypatch):
    clock, seconds = replaced_clock(monkeypatch, runner), {"slow": 60, "brief": 1}
    (tmp_path / "out" / "results").mkdir(parents=True)

    def run(command, arguments, limit_s, log, paths):
        clock.sleep(min(seconds[command.module], limit_s))
        if seconds[command.module] > limit_s:
            return runner.Record(runner.OVER_TIME)
        Path(*arguments, command.module).touch()
        return runner.Record(runner.DONE)

    monkeypatch.setattr(runner, "run_process", run)
    commands = [Command("slow", "{results}"), Command("brief", "{results}")]
    assert suite(limit_s=0.5).run("x", commands).status == "over time"
    outcome = suite(limit_s=2).run("x", commands)
    assert outcome.files == ["brief"]
    assert outcome.status == "unfinished"  # `slow` had only what `brief` left of the limit, so it is no failure
    assert gpu_suite.exit_code([outcome]) == 3


def test_a_training_run_that_saves_goes_on_in_the_next_call(suite, tmp_path, limit_from):
    limit_from(tmp_path / "state.begun")
    command = Command("saving", "{out}/state")
    first = suite(limit_s=0.5).run("train", [command])
    assert (first.status, first.reason) == ("unfinished", "saved at the time limit; the next call goes on")
    assert suite().run("train", [command]).status == "done"


def test_what_cannot_end_in_time_is_left_for_the_next_call(suite):
    long = Command("good", "{results} long", minutes=3)
    outcome = suite(limit_s=60).run("x", [good("a"), long], left_s=50)
    assert (outcome.status, outcome.files) == ("unfinished", ["a"])
    outcome = suite(limit_s=60).run("x", [good("a"), long], left_s=50)
    assert outcome.files == ["a", "long"]  # the first of a call may as well begin


def test_a_missing_piece_skips_what_needs_it(suite):
    needy = Command("good", "{results} needy", needs=("tyro",))
    outcome = suite(absent=("tyro",)).run("x", [needy, good("a")])
    assert (outcome.status, outcome.files, outcome.reason) == ("done", ["a"], "missing tyro")
    assert suite(absent=("tyro",)).run("y", [needy]).status == "skipped"
    assert suite().run("y", [needy]).files == ["needy"]  # once it is there


def test_a_call_that_can_run_nothing_fails(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(preflight, "missing", lambda *_, **__: ["torch"])
    assert gpu_suite.main(["--dry-run", "--only", "attention", "--out", str(tmp_path)]) == 1
    assert f"error: {sys.executable} lacks what every part needs" in capsys.readouterr().err


def test_missing_pieces_are_named_with_the_parts_they_stop(monkeypatch):
    there = preflight.is_present
    monkeypatch.setattr(preflight, "is_present", lambda piece: piece not in ("tyro", "apex") and there(piece))
    lines = preflight.report(parts.GPU, lambda command: preflight.missing(command, has_data=True))
    assert "missing: tyro; skipped for it: digits, train" in lines
    assert any(line.startswith("missing: apex; no apex row") for line in lines)
    train = parts.GPU["train"][0]
    assert preflight.missing(train, has_data=False) == ["tyro", "--data ROOT with cifar-100-python"]


def test_versions_outside_the_project_s_bounds_count_as_missing(monkeypatch):
    versions = {"timm": "0.4.12", "torch": "2.11.0a0+1234"}  # an image's own build of 2.11
    monkeypatch.setattr(preflight.metadata, "version", lambda name: versions[name])
    assert re.fullmatch(r"timm.*>=1.*\(here: 0\.4\.12\)", preflight.lack("timm"))
    assert preflight.lack("torch") == ""
    versions["torch"] = "2.10.1"
    assert preflight.lack("torch") == "torch>=2.11 (here: 2.10.1)"


def test_wheels_are_installed_beside_the_environment(tmp_path):
    wheel = tmp_path / "tiny_piece-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_piece.py", "VALUE = 3\n")
        archive.writestr("tiny_piece-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-piece\nVersion: 1.0\n")
        archive.writestr(
            "tiny_piece-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_piece-1.0.dist-info/RECORD", "")
    preflight.install_wheels(preflight.wheel_files([tmp_path]), tmp_path / "site")
    assert (tmp_path / "site" / "tiny_piece.py").is_file()
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("tiny_piece")
    with pytest.raises(ValueError, match=r"--wheels: .*nothing.whl is neither a wheel nor a folder of wheels"):
        preflight.wheel_files([tmp_path / "nothing.whl"])


class Understood(Exception):
    """The command line was read."""


TABLES = (parts.GPU, lease.FIRST, lease.SECOND)
GPU_COMMANDS = {command.key: command for table in TABLES for commands in table.values() for command in commands}


@pytest.mark.parametrize("command", GPU_COMMANDS.values(), ids=GPU_COMMANDS)
def test_commands_for_the_gpu_are_understood(command, tmp_path, monkeypatch):
    """They cannot run here, but their options and names must exist."""
    places = dict.fromkeys(("out", "results", "data", "switches", "stamp"), tmp_path)
    places |= {"ceilings": tmp_path / "c.csv", "table": "benchmarks.kernels.table"}
    arguments = command.arguments(places)
    options = dict(itertools.pairwise(arguments))
    module = importlib.import_module(command.module)
    named = (("--providers", "PROVIDERS"), ("--shapes", "SHAPES"), ("--shape", "SHAPES"), ("--kernels", "KERNELS"))
    for option, known in named:
        if option in options and hasattr(module, known):
            assert set(options[option].split(",")) <= set(getattr(module, known))
    if command.module == "benchmarks.suite.train":
        assert load_recipe(options["--recipe"]).data.dataset == options["--recipe"].partition("-")[0]

    def stop(*_: object, **__: object):
        raise Understood

    stops = ("chosen_device", "record", "build", "run_recipe", "rows", "run", "findings", "RowFile")
    for place in stops:
        for owner in (harness, row_file, module):
            if hasattr(owner, place):
                monkeypatch.setattr(owner, place, stop)
    with pytest.raises(Understood):
        module.main(arguments)


def test_parts_are_chosen_by_name_and_ceilings_come_first():
    assert parts.selected("step,attention", profile=False) == ["ceilings", "attention", "step"]
    assert parts.selected("build", profile=False) == ["build"]
    assert parts.selected("", profile=True)[-2:] == ["profile", "train"]
    with pytest.raises(ValueError, match="--only: unknown part 'fast'; known: ceilings, build"):
        parts.selected("fast", profile=False)


def test_a_benchmark_without_ceilings_measures_its_own():
    command = parts.DRY["feature_mse"][0]
    assert "--ceilings" in command.arguments({"results": "r", "ceilings": "c.csv"})
    assert "--ceilings" not in command.arguments({"results": "r", "ceilings": None})


def test_gpu_tests_are_found_by_their_mark():
    files = gpu_tests.test_files()
    assert "tests/step/test_step.py" in files  # some are marked
    assert "tests/ops/test_feature_mse_cuda.py" in files  # the whole file is
    assert "tests/data/test_permutation.py" not in files  # needs hypothesis, and no GPU


FILES = {
    "good": "def test_good(): pass",
    "bad": "def test_good(): pass\ndef test_bad(): raise AssertionError('seven')",
    "ended": "import os\ndef test_ended(): os._exit(9)",
    "empty": "",
    "hangs": "import time\ndef test_hangs(): time.sleep(600)",
}


@pytest.fixture
def gpu_files(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # hypothesis and others take 1.4 s to import
    for name, text in FILES.items():
        mark = "import pytest\npytestmark = pytest.mark.gpu\n" if text else ""
        (tmp_path / f"test_{name}.py").write_text(mark + text)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu")
    return lambda *names: [str(tmp_path / f"test_{name}.py") for name in names]


def test_a_file_of_gpu_tests_that_ends_its_process_leaves_the_others(gpu_files, tmp_path, capfd):
    junit, files = tmp_path / "junit", gpu_files("good", "bad", "ended", "empty")
    assert gpu_tests.main(["--workers", "2", "--junit", str(junit), *files]) == 1
    last = capfd.readouterr().out.splitlines()[-1]
    assert last.startswith("2 of 4 files passed; failed: ")
    assert "test_bad.py (1 failed, 1 passed in" in last and "test_ended.py (" in last
    assert len(list(junit.glob("*test_good.xml"))) == 1


def test_a_file_of_gpu_tests_that_hangs_is_ended(gpu_files, capfd):
    assert gpu_tests.main(["--seconds", "2", *gpu_files("hangs")]) == 1
    assert capfd.readouterr().out.splitlines()[-1].endswith("test_hangs.py (not finished after 2 s)")


def test_libraries_for_another_python_are_not_built(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "ROOT", tmp_path)
    (tmp_path / "lgfast").mkdir()
    (tmp_path / "lgfast" / "_C.cpython-37m-x86_64-linux-gnu.so").touch()
    (tmp_path / "lgfast" / "_cuda.so").touch()
    assert not build.is_built(with_cuda=True)
    (tmp_path / "lgfast" / f"_C{build.EXTENSION_SUFFIXES[0]}").touch()
    assert build.is_built(with_cuda=True)


def test_hopper_is_built_with_its_own_instructions():
    assert [build.arch_list(capability) for capability in ((9, 0), (8, 0), (12, 0))] == ["9.0a", "8.0", "12.0"]


def test_nothing_is_measured_that_is_not_built(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_suite, "is_built", lambda with_cuda: False)
    options = gpu_suite.parser().parse_args(["--dry-run", "--out", str(tmp_path)])
    suite = gpu_suite.Suite(options, time.monotonic())
    monkeypatch.setattr(suite, "execute", lambda *arguments: runner.Record("failed", reason="exit code 1: no nvcc"))
    assert [outcome.part for outcome in suite.run()] == ["build"]
    assert "the other parts need the libraries, which were not built" in capsys.readouterr().out


def test_state_is_readable_json(suite, tmp_path):
    suite().run("x", [good("a")])
    record = json.loads((tmp_path / "out" / "state.json").read_text())["x"]["good {results} a"]
    assert record["status"] == "done" and record["files"] == ["a"]
