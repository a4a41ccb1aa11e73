"""The runs of these tests are too small to gain from several threads."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def small_runs(one_thread):
    pass
