"""A shell completes commands, options, choices and keys from the script that `lgfast completion` prints."""

import contextlib
import shutil
import subprocess

import pytest

from lgfast.completion.__main__ import main, whole_parser
from lgfast.config import valid_keys
from lgfast.runtime.commands import COMMANDS

BASH = shutil.which("bash")


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "lgfast.sh"
    with path.open("w") as file, contextlib.redirect_stdout(file):
        assert main(["bash"]) == 0
    return path


@pytest.mark.skipif(BASH is None, reason="no bash here")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["ex"], ["export"]),
        (["train", "--optim.muon"], ["--optim.muon-momentum"]),
        (["sweep", "--sweep-sp"], ["--sweep-space"]),
        (["export", "--format", "o"], ["onnx"]),
        (["completion", "z"], ["zsh"]),
    ],
)
def test_bash_completes(script, words, expected):
    line = " ".join(["lgfast", *words])
    code = f"source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words)}; _shtab_lgfast; echo ${{COMPREPLY[@]}}"
    done = subprocess.run([BASH, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected


def test_every_command_and_key_is_known():
    commands = whole_parser()._subparsers._group_actions[0].choices
    assert commands.keys() == COMMANDS.keys()
    options = {option for action in commands["train"]._actions for option in action.option_strings}
    assert {f"--{key.replace('_', '-')}" for key in valid_keys()} <= options
