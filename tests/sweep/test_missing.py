"""A module that is not there is named, be it Optuna or one that Optuna needs."""

import json

import pytest

from tests.torch_process import run as run_python

MISSING = {
    "optuna": "error: sweeps need Optuna: pip install 'lgfast[sweep]' (or: pip install 'optuna>=5')\n",
    "sqlite3": "error: sweeps need the Python module 'sqlite3', which Optuna imports and this Python lacks",
}
HIDE = """
import json, os, sys
import lgfast.assembly.images  # takes long, and needs neither
from lgfast.train import main

class Hidden:
    def __init__(self, name):
        self.name = name

    def find_spec(self, name, path=None, target=None):
        if name == self.name:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)

found = {}
for name in sys.argv[1:]:
    assert name not in sys.modules
    with open(name, "w+") as errors:
        if not (pid := os.fork()):
            sys.stderr = errors
            sys.meta_path.insert(0, Hidden(name))
            status = main(["--sweep", "optim.lr=1e-3,2e-3"])
            errors.flush()
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        errors.seek(0)
        found[name] = status, errors.read()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def endings(tmp_path_factory):
    """Name of the missing module -> exit status and errors of a sweep."""
    done = run_python(HIDE, list(MISSING), tmp_path_factory.mktemp("missing"))
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("name", "message"), MISSING.items())
def test_what_is_missing_is_named(endings, name, message):
    status, errors = endings[name]
    assert status == 2 and message in errors and "Traceback" not in errors
