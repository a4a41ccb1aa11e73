"""The package imports and states its version."""

import re

import lgfast


def test_version_is_semantic():
    assert re.fullmatch(r"\d+\.\d+\.\d+", lgfast.__version__)
