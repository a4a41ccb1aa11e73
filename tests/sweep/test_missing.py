"""A module that is not there is named, be it Optuna or one that Optuna needs."""

import subprocess
import sys

import pytest

HIDE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)
sys.meta_path.insert(0, Hidden())
from lgfast.train import main
sys.exit(main(["--sweep", "optim.lr=1e-3,2e-3"]))
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("optuna", "error: sweeps need Optuna: pip install 'lgfast[sweep]' (or: pip install 'optuna>=5')\n"),
        ("sqlite3", "error: sweeps need the Python module 'sqlite3', which Optuna imports and this Python lacks"),
    ],
)
def test_what_is_missing_is_named(tmp_path, name, message):
    code = HIDE.format(name=name)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
