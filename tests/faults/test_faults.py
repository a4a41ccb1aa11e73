"""No file-system call that fails or kills loses anything of a run: a sample; `make faults` tries all."""

import re
import subprocess
import sys

import pytest

from tests.faults.harness import command, remove

SCRIPT = """
import ctypes, os, sys
folder = os.path.realpath(sys.argv[1])
library = ctypes.CDLL(None)

def change():  # eight calls
    os.chdir(folder)
    os.mkdir("sub")
    with open("sub/a", "wb", buffering=0) as file:
        file.write(b"1234")
        os.fsync(file)
    os.replace("sub/a", f"{folder}/sub/b")
    os.truncate("sub/b", 1)
    os.unlink("sub/b")
    os.rmdir("sub")

library.arm(os.fsencode(folder), 0, 0, 0)
change()
open(sys.argv[2], "w").close()  # elsewhere
print(library.calls())
for at in range(1, 9):
    library.arm(os.fsencode(folder), 3, at, 5)
    try:
        change()
    except OSError as error:
        print(error.errno)
    library.arm(os.fsencode(folder), 0, 0, 0)
    os.system(f"rm -rf {folder}/sub")
"""


def run(program, arguments, environment):
    return subprocess.run([*program, *arguments], env=environment, capture_output=True, text=True, timeout=300)


def test_every_call_that_changes_a_file_is_counted_and_can_fail(tmp_path):
    _, environment = command()
    (tmp_path / "in").mkdir()
    done = run([sys.executable, "-c", SCRIPT], [tmp_path / "in", tmp_path / "out"], environment)
    assert done.stderr == "" and done.stdout.split() == ["8"] + 8 * ["5"]


@pytest.mark.slow
def test_a_run_survives_what_befalls_its_files():
    program, environment = command("--sample", "4", "--seed", "0")
    done = run(program, [], environment)
    assert done.returncode == 0, done.stdout + done.stderr
    ended = re.findall(r"^(KILL|TEAR|EIO|ENOSPC):\d+: well$", done.stdout, flags=re.MULTILINE)
    assert sorted(ended) == sorted(4 * ["KILL", "TEAR", "EIO", "ENOSPC"])


def test_an_attempt_removes_its_own_files_alone(tmp_path):
    for name in ("KILL:1.err", "KILL:1.verdict", "KILL:10.err"):
        (tmp_path / name).touch()
    for name in ("KILL:1", "KILL:10"):
        (tmp_path / name).mkdir()
    remove(tmp_path / "KILL:1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["KILL:10", "KILL:10.err"]
