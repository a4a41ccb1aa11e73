"""The line at the end of the tests says what they lacked."""

import os
import subprocess
import sys
from pathlib import Path

from tests import skips

ROOT = Path(__file__).resolve().parents[1]
SKIPPING = """
import pytest

@pytest.mark.parametrize("n", range(3))
def test_on_a_gpu(n):
    pytest.skip("needs a CUDA device")

def test_of_a_package():
    pytest.importorskip("no_such_package")

@pytest.mark.skipif(True, reason="needs CPU kernels at level avx512_bf16")
def test_products(): ...

@pytest.mark.skipif(True, reason="the moon is not full")
def test_of_the_moon(): ...

@pytest.mark.xfail
def test_that_fails():
    assert False

def test_that_runs(): ...
"""
SAID = (
    "6 skipped: 3 for a GPU (make test-gpu where there is one), 1 for no_such_package (pip install no_such_package), "
    "1 for bfloat16 products (a processor with AVX512_BF16, as Sapphire Rapids or Zen 4), 1 for the moon is not full"
)


def run(folder, *options):
    """pytest in a process of its own, with the line but without this folder's set-up, which waits for torch."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.skips", "-p", "no:cacheprovider", *options]
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # hypothesis and others take 1.4 s to import
    command += ["--rootdir", folder, folder]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_missing_capabilities_are_counted_in_one_line(tmp_path):
    (tmp_path / "test_skipping.py").write_text(SKIPPING)
    assert SAID in run(tmp_path)
    assert not any("skipped: " in line for line in run(tmp_path, "-k", "runs"))


def test_the_tests_here_have_the_line():
    from tests import conftest

    assert conftest.pytest_terminal_summary is skips.pytest_terminal_summary
