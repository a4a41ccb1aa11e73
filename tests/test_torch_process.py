"""Programs of one line that are forked from a server."""

import pytest

from tests.torch_process import run


def test_a_program_that_hangs_is_ended_and_the_next_one_runs():
    assert run("import sys; print('torch' in sys.modules); sys.exit(3)").stdout == "True\n"  # the server has begun
    with pytest.raises(AssertionError, match=r"still running after 5 s:\nbefore"):
        run("import time; print('before', flush=True); time.sleep(600)", timeout=5)
    assert run("import sys; sys.exit(3)").returncode == 3
