"""Ctrl-C, from a command's first import to its last step: one line, exit status 130, nothing half-written."""

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lgfast.assembly.images as images
import lgfast.assembly.lanes as lanes
from lgfast.data.read import UnreadableError
from lgfast.predict import main as predict
from lgfast.runtime.interrupt import Interrupted, InterruptFlag
from lgfast.train import main
from lgfast.training.lane import Lane
from tests.runs import TINY, teacher


@pytest.fixture(autouse=True)
def signals():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_repeated_signal_ends_the_process():
    flag = InterruptFlag().install()
    os.kill(os.getpid(), signal.SIGTERM)
    assert flag.requested and flag.signal_number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_that_torchrun_passes_on_too_does_not():
    flag = InterruptFlag().install(repeat_ends=False)
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)
    assert flag.requested and flag.signal_number == signal.SIGINT


def test_what_needs_no_saving_ends_at_once():
    flag, done = InterruptFlag().install(), []
    with pytest.raises(Interrupted, match="stopped before the first step; nothing is lost"), flag.at_once():
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("what follows the signal")
    with pytest.raises(Interrupted), flag.at_once():  # after a signal it does not begin
        done.append("what follows the end")
    assert flag.signal_number == signal.SIGTERM and not done


@pytest.mark.parametrize("error", [Interrupted("stopped", "go on"), UnreadableError("a.png", "no permission")])
def test_errors_of_other_processes_arrive(error):
    found = pickle.loads(pickle.dumps(error))
    assert (type(found), str(found), vars(found)) == (type(error), str(error), vars(error))


HOOK = """
import os, signal, sys

class CtrlC:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["CTRL_C_AT"]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, CtrlC())
"""


@pytest.mark.parametrize(
    ("command", "module"),
    [
        (["lgfast", "predict", "run", "a.png"], "lgfast.predict"),
        (["lgfast.train"], "torch"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_in_the_imports(command, module, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(HOOK)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    environment = os.environ | {"PYTHONPATH": path, "CTRL_C_AT": module}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "stopped before the first step; nothing is lost: the same command begins again\n"
    assert [path.name for path in tmp_path.iterdir()] == ["sitecustomize.py"]


@pytest.fixture(autouse=True)
def python_s_ctrl_c():
    """Python's own handler, also where other tests left one, or a shell started these in the background, which ignores
    SIGINT; a child process has the default then."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def ctrl_c(function, count=1):
    """The function, in whose `count`-th call the user presses Ctrl-C."""
    calls = []

    def wrapped(*args, **kwargs):
        calls.append(args)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGINT)
        return function(*args, **kwargs)

    return wrapped


@pytest.fixture
def command(tmp_path):
    """A guided run in tmp_path/run, its teacher in tmp_path/cache."""
    places = {"run_dir": tmp_path / "run", "teacher.cache": tmp_path / "cache", "teacher.recipe": teacher(tmp_path)}
    return [word for key, value in (TINY | places).items() for word in ("--set", f"{key}={value}")]


def hidden(folder: Path) -> list[Path]:
    """What is half-written: temporary files begin with a dot."""
    return list(folder.rglob(".*"))


def test_while_images_are_read(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(images, "load_whole", ctrl_c(images.load_whole))
    assert main(command) == 130
    assert capsys.readouterr().err == "stopped before the first step; nothing is lost: the same command begins again\n"
    assert not (tmp_path / "run").exists() and not (tmp_path / "cache").exists()


def test_while_the_teacher_trains_and_then_while_the_student_is_built(command, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(Lane, "train_batch", ctrl_c(Lane.train_batch, 2))
        assert main(command) == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"stopped and saved as {tmp_path}/cache/teachers/")
    assert line.endswith("the same command: the teacher goes on where it stands, then the student begins")
    assert not (tmp_path / "run").exists()

    with monkeypatch.context() as patch:
        patch.setattr(lanes, "build_trained_part", ctrl_c(lanes.build_trained_part, 2))  # the first is the teacher
        assert main(command) == 130
    assert capsys.readouterr().err == "stopped before the first step; nothing is lost: the same command begins again\n"
    assert not (tmp_path / "run").exists()
    assert not hidden(tmp_path)
    assert main(command) == 0


def test_while_the_first_step_is_compiled(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch, "compile", ctrl_c)  # torch's own takes a minute at the function's first call
    assert main([*command, "--set", "guidance.weight=0", "--set", "step.compile=on"]) == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"stopped and saved as {tmp_path}/run/checkpoints/step_0000")
    assert line.endswith(f"continue with: python -m lgfast.train --resume {tmp_path}/run")
    assert not hidden(tmp_path)


def test_every_other_command_says_so_in_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lgfast.predict.load_classifier", ctrl_c(lambda *place: None))
    assert predict(["run", "a.png", "--out", str(tmp_path / "new" / "a.csv")]) == 128 + signal.SIGINT
    assert capsys.readouterr().err == "stopped by Ctrl-C\n"
    assert not list(tmp_path.iterdir())
