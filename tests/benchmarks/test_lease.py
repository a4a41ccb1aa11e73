"""A short time on a GPU, rehearsed on the CPU: kernels that fail in every way, commands that hang, time cut short."""

import csv
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from benchmarks import counters, fetch_wheels, gpu_suite, sanitizer
from benchmarks.kernels import once
from benchmarks.suite import build, lease, preflight, runner
from benchmarks.suite.parts import Command
from tests.clock import replaced_clock

PLANTED = "tests.benchmarks.planted_kernels"


def statuses(out: Path) -> dict[str, str]:
    return {line.split()[0]: line.split()[1] for line in (out / "summary.txt").read_text().splitlines()[1:]}


def names_in(archive: Path) -> set[str]:
    with tarfile.open(archive) as file:
        return set(file.getnames())


@pytest.mark.slow
def test_with_kernels_that_hang_are_wrong_or_missing_everything_else_is_measured(
    forked_at_once, tmp_path, monkeypatch, capsys
):
    """Runs the first call with tiny shapes; it measures the same as the call on a GPU."""
    monkeypatch.delenv("LGFAST_DISABLE", raising=False)
    out, pack = tmp_path / "out", tmp_path / "pack"
    options = ["--dry-run", "--lease", "4", "--table", PLANTED, "--out", str(out), "--pack", str(pack)]
    assert gpu_suite.main(options) == 1
    assert statuses(out) == {name: "failed" if name == "smoke" else "done" for name in lease.FIRST}
    said = capsys.readouterr().out
    assert "hanging" in said and "no answer in time" in said  # the lines of each part are shown
    suite = gpu_suite.Suite(gpu_suite.parser().parse_args(options), time.monotonic())
    off = suite.variables()["LGFAST_DISABLE"].split(",")
    assert {"augment", "augment_plan", "short_attention_bwd_resident"} <= set(off)
    benches = {path.stem.split("_", 2)[2] for path in (out / "results").glob("*.csv")}
    measured = {"smoke", "ceilings", "train_step", "short_attention", "feature_mse", "augment", "optimizer", "profile"}
    assert benches == measured
    packed = names_in(pack / "results.tar.gz")
    assert {f"results/{path.name}" for path in (out / "results").iterdir()} <= packed
    assert {"state.json", "summary.txt", "switches.txt", "logs/step.log"} <= packed


SCRIPTS = {
    "quick": "import os, pathlib, sys; pathlib.Path(sys.argv[1], sys.argv[2]).write_text(os.environ['LGFAST_DISABLE'])",
    "hangs": "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)",
}


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """Commands that are processes of their own, over small scripts, in place of the parts of a lease."""
    for name, text in SCRIPTS.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    monkeypatch.setattr(Command, "needs_process", property(lambda command: True))
    monkeypatch.setattr(gpu_suite, "LEASE_GRACE_S", 0.5)

    def use(**parts: list[Command]) -> list[str]:
        monkeypatch.setattr(lease, "DRY_FIRST", parts)
        return ["--dry-run", "--out", str(tmp_path / "out"), "--pack", str(tmp_path / "pack"), "--lease"]

    return use


def quick(name: str, minutes: float = 0) -> Command:
    return Command("quick", f"{{results}} {name}", minutes=minutes, limit=1)


def test_what_hangs_is_ended_by_its_own_limit_and_the_rest_is_measured(scripts, tmp_path):
    options = scripts(build=[quick("a")], step=[Command("hangs", limit=0.02), quick("b")], attention=[quick("c")])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "switches.txt").write_text("augment")
    assert gpu_suite.main([*options, "2"]) == 1
    assert statuses(tmp_path / "out") == {"build": "done", "step": "over", "attention": "done"}
    assert (tmp_path / "out" / "results" / "c").read_text() == "augment"  # it goes on without that kernel
    assert {"results/a", "results/b", "results/c"} <= names_in(tmp_path / "pack" / "results.tar.gz")


@pytest.fixture
def clock(monkeypatch):
    """Half a second passes for each command, and what it may take for one that hangs: a busy machine may need more."""
    clock, wait = replaced_clock(monkeypatch, runner), subprocess.Popen.wait
    monkeypatch.setattr(gpu_suite, "time", clock)

    def wait_by_clock(process: subprocess.Popen, timeout: float | None = None) -> int:
        if "hangs" not in process.args:
            clock.sleep(0.5)
            return wait(process)
        try:
            return wait(process, 0.1)
        except subprocess.TimeoutExpired:
            clock.sleep(timeout)
            raise

    monkeypatch.setattr(subprocess.Popen, "wait", wait_by_clock)
    return clock


def test_a_lease_that_is_cut_short_ends_in_time_with_what_it_has(scripts, tmp_path, clock):
    slow = Command("hangs", limit=5)
    options = scripts(
        build=[quick("a")], step=[quick("b"), slow], augment=[quick("c", minutes=3)], profile=[quick("d")]
    )
    assert gpu_suite.main([*options, "0.12"]) == 3  # 7.2 s
    assert clock.now < 7.2 + 5.1  # and what an ended process may take
    found = statuses(tmp_path / "out")
    assert found["build"] == "done" and found["step"] == found["augment"] == found["profile"] == "unfinished"
    assert {"results/a", "results/b"} <= names_in(tmp_path / "pack" / "results.tar.gz")

    scripts(build=[quick("a")], step=[quick("b")], augment=[quick("c", minutes=3)], profile=[quick("d")])
    (tmp_path / "out" / "results" / "b").unlink()
    assert gpu_suite.main([*options, "4"]) == 0  # goes on
    assert not (tmp_path / "out" / "results" / "b").exists()
    assert (tmp_path / "out" / "results" / "d").exists()


def test_the_second_call_needs_the_first_and_builds_nothing_again(tmp_path, monkeypatch, capsys):
    assert gpu_suite.main(["--dry-run", "--continue", "--out", str(tmp_path)]) == 2
    assert "--continue goes on with a lease: give --lease MINUTES too" in capsys.readouterr().err
    stamp, built = tmp_path / "native.txt", []
    monkeypatch.setattr(build, "build", lambda: built.append(1))
    monkeypatch.setattr(build, "is_built", lambda with_cuda: True)
    for _ in range(2):
        build.main(["--stamp", str(stamp)])
    assert built == [1]
    monkeypatch.setattr(build, "native_digest", lambda: "other sources")
    build.main(["--stamp", str(stamp)])
    assert built == [1, 1] and stamp.read_text() == "other sources"


def test_the_digest_of_the_libraries_follows_their_sources_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "ROOT", tmp_path)
    for path in ("csrc/op/kernel.cuh", "lgfast/ops/schemas.inc", "lgfast/train.py", "CMakeLists.txt"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("one")
    digests = [build.native_digest()]
    for path in ("lgfast/train.py", "csrc/op/kernel.cuh", "CMakeLists.txt", "lgfast/ops/schemas.inc"):
        (tmp_path / path).write_text("two")
        digests.append(build.native_digest())
    assert digests[0] == digests[1] and len(set(digests)) == 4


def test_a_lease_measures_in_order_of_worth_within_its_time():
    assert list(lease.FIRST)[:5] == ["build", "smoke", "ceilings", "step", "attention"]
    assert list(lease.FIRST)[-1] == "profile" and list(lease.DRY_FIRST) == list(lease.FIRST)
    for table, minutes in ((lease.FIRST, 7), (lease.SECOND, 5)):
        commands = [command for commands in table.values() for command in commands]
        assert sum(command.minutes for command in commands) <= minutes
        unlimited = [command.key for command in commands if not command.limit]
        assert len(unlimited) <= 1 and unlimited == [
            c.key for c in commands[-1:] if not c.limit
        ]  # the last takes the rest
    assert lease.VARIANTS == [
        "feature_mse_two_launches", "feature_mse", "short_attention_fwd", "short_attention_fwd_wgmma",
        "short_attention_bwd_streamed", "short_attention_bwd_resident", "short_attention_bwd_wgmma",
    ]  # fmt: skip


def test_one_kernel_runs_once(monkeypatch, capsys):
    monkeypatch.setenv("LGFAST_DISABLE", "")  # it sets its own
    assert once.main(["bias_gelu_fwd", "--shape", "small", "--device", "cpu"]) == 0
    assert capsys.readouterr().out == "bias_gelu_fwd batch=1 shape=digits: ran\n"


FAKE_NCU = """#!{python}
import pathlib, sys
if "--export" in sys.argv:
    if "augment" in sys.argv: sys.exit("==ERROR== no counters")
    pathlib.Path(sys.argv[sys.argv.index("--export") + 1]).touch()
elif "raw" in sys.argv:
    print('==PROF== a line of its own')
    print('"ID","Kernel Name","gpu__time_duration.sum","smsp__inst_executed.sum"')
    print('"","","ns","inst"')
    print('"0","void lgfast::bias_gelu_kernel<bf16>(int)","41,216","1,024"')
else:
    print("all sections")
"""


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Stand-ins for programs of the CUDA toolkit, first on PATH."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def add(name: str, text: str) -> None:
        (folder / name).write_text(text.format(python=sys.executable))
        (folder / name).chmod(0o755)

    return add


def test_counters_are_read_from_what_ncu_says(programs, tmp_path, capsys):
    programs("ncu", FAKE_NCU)
    assert counters.main(["--kernels", "augment,bias_gelu_fwd", "--device", "cpu", "--out", str(tmp_path)]) == 1
    assert "augment: ==ERROR== no counters" in capsys.readouterr().out
    (path,) = tmp_path.glob("*_counters.csv")
    (row,) = csv.DictReader(path.open())
    assert (row["op"], row["time_ns"], row["instructions"]) == ("bias_gelu_fwd", "41216", "1024")
    assert (tmp_path / "ncu_bias_gelu_fwd.txt").read_text() == "all sections\n"


def test_what_the_sanitizer_finds_stands_last(programs, capsys):
    programs(
        "compute-sanitizer", "#!{python}\nimport sys\nif 'racecheck' in sys.argv: print('========= Race'), sys.exit(9)"
    )
    assert sanitizer.main(["--kernels", "augment"]) == 1
    assert capsys.readouterr().out == (
        "augment memcheck: nothing found\naugment racecheck: exit code 9\n========= Race\n"
    )
    assert sanitizer.main(["--kernels", "augment", "--tools", "memcheck"]) == 0


def test_programs_of_the_toolkit_are_named_where_they_are_missing(monkeypatch):
    monkeypatch.setattr(preflight, "find_program", lambda name: None)
    with pytest.raises(RuntimeError, match="ncu is not on PATH, nor in /usr/local/cuda/bin"):
        preflight.program("ncu")
    assert "ncu" in preflight.missing(lease.SECOND["counters"][0], has_data=True)


def test_wheels_are_fetched_in_the_versions_that_the_project_asks_for(tmp_path, monkeypatch):
    (tmp_path / "timm-0.4-py3-none-any.whl").touch()
    commands = []
    monkeypatch.setattr(
        subprocess, "run", lambda command: commands.append(command) or subprocess.CompletedProcess(command, 0)
    )
    assert fetch_wheels.main(["--python", "3.12", "--out", str(tmp_path)]) == 0
    assert not list(tmp_path.glob("*.whl"))  # of an earlier fetch
    (command,) = commands
    assert command[command.index("--python-version") + 1] == "3.12" and "--only-binary=:all:" in command
    assert command[-5:] == ["timm>=1.0.31,<2", "tyro>=0.9", "docstring-parser", "typeguard", "typing-extensions"]
    (tmp_path / "big.whl").write_bytes(b"")
    monkeypatch.setattr(fetch_wheels, "LARGEST_MIB", -1)
    assert fetch_wheels.main(["--out", str(tmp_path)]) == 1
