"""The command `lgfast` is `python -m lgfast.COMMAND`, and helps without loading torch."""

import subprocess
import sys

import pytest

from lgfast.__main__ import COMMANDS, main


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_that_of_its_module(command, capsys):
    module = COMMANDS[command][0].removesuffix(".__main__")
    with pytest.raises(SystemExit) as stop:
        sys.exit(main([command, "--help"]))
    assert stop.value.code in (0, None)
    assert f"python -m lgfast.{module}" in capsys.readouterr().out


def test_help_fits_a_screen_and_loads_no_torch():
    code = "import sys; from lgfast.__main__ import main; main(['--help']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 100
    assert all(any(line.strip().startswith(name) for line in lines) for name in COMMANDS)


def test_an_unknown_command_names_the_nearest(capsys):
    assert main(["trian"]) == 2
    assert "unknown command 'trian'; did you mean" in capsys.readouterr().err
