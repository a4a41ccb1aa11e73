"""Paths as users write them: ~ is expanded everywhere, and a user without a home is told what to set."""

import os
import pwd
import subprocess
import sys

import pytest

from lgfast.assembly.run_folder import run_folder
from lgfast.assembly.teachers import cache_folder
from lgfast.config import Config, replace
from lgfast.runtime.paths import cache_home, user_path


@pytest.fixture
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("LGFAST_CACHE", raising=False)
    return tmp_path


def test_home_is_expanded(home):
    assert user_path("~/a/b") == home / "a" / "b"
    assert user_path("/x/~/y").as_posix() == "/x/~/y"


def test_an_unknown_user_is_named():
    with pytest.raises(ValueError, match=r"~nobody-of-this-name/x: there is no home folder"):
        user_path("~nobody-of-this-name/x")


def test_the_cache_lies_where_the_environment_or_the_home_says(home, monkeypatch):
    assert cache_home() == home / ".cache" / "lgfast"
    monkeypatch.setenv("LGFAST_CACHE", "~/kept")
    assert cache_home() == home / "kept"
    assert cache_folder(Config()) == home / "kept"
    assert cache_folder(replace(Config(), {"teacher.cache": "~/own"})) == home / "own"


def test_a_runs_folder_is_expanded(home):
    with run_folder(replace(Config(), {"run_dir": "~/runs/one"}), resume=False) as folder:
        assert folder == home / "runs" / "one"
    assert (home / "runs" / "one" / "config.yaml").is_file()


def unknown_uid():
    known = {entry.pw_uid for entry in pwd.getpwall()}
    return next(uid for uid in range(60_000, 1000, -1) if uid not in known)


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="needs root, to become an unknown user")
def test_a_user_without_a_home_is_told_what_to_set():
    code = f"import os; from lgfast.runtime.paths import cache_home; os.setuid({unknown_uid()}); cache_home()"
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "LGFAST_CACHE")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "ValueError: this user has no home folder for lgfast's cache; set LGFAST_CACHE" in done.stderr
