"""What failed is said before the tests end."""

import os
import subprocess
import sys
from pathlib import Path

from tests import failures

ROOT = Path(__file__).resolve().parents[1]
STOPPED = """
import os

def test_that_fails(): assert "soon" == "late"

def test_that_is_stopped(): os.kill(os.getpid(), 9)
"""


def test_a_failure_is_named_though_the_tests_are_stopped(tmp_path):
    (tmp_path / "test_stopped.py").write_text(STOPPED)
    command = [sys.executable, "-m", "pytest", "-p", "tests.failures", "-p", "no:cacheprovider"]
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [*command, "--rootdir", tmp_path, tmp_path], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == -9
    assert "test_stopped.py::test_that_fails failed, call took 0 s" in done.stdout
    assert "AssertionError: assert 'soon' == 'late'" in done.stdout


def test_the_tests_here_say_it():
    from tests import conftest

    assert conftest.pytest_configure is failures.pytest_configure
