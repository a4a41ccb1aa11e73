"""URLs as they may be shown and stored."""

import json
import sys

import pytest
from sqlalchemy import make_url

from lgfast.runtime.environment import describe_environment
from lgfast.runtime.passwords import without_password

PLAIN = [
    "study.journal",
    "/shared/a:b@c/study.journal",
    "sqlite:////tmp/a:b@c/study.db",
    "postgresql+psycopg://user@host:5432/base?sslmode=require",
    "postgresql+psycopg://host:5432/base",
    "--optim.lr=1e-3",
]


@pytest.mark.parametrize("text", PLAIN)
def test_what_holds_no_password_stays(text):
    assert without_password(text) == text


@pytest.mark.parametrize("password", ["secret", "s:e/c@r?t", "a b", "%40", "@@", "x&y=z"])
def test_no_part_of_a_password_is_left(password):
    url = f"postgresql+psycopg://user:{password}@host:5432/base?sslmode=require"
    expected = "postgresql+psycopg://user@host:5432/base?sslmode=require"
    assert without_password(url) == expected
    assert without_password(f"--study={url}") == f"--study={expected}"


@pytest.mark.parametrize("query", ["?password=secret", "?sslmode=require&password=secret", "?PASSWD=secret&a=1"])
def test_a_password_among_the_parameters_is_left_out(query):
    url = make_url(without_password(f"postgresql://host/base{query}"))
    assert (url.host, url.database) == ("host", "base")
    assert "secret" not in str(url) and dict(url.query) in ({}, {"sslmode": "require"}, {"a": "1"})


def test_the_recorded_command_has_no_password(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--study", "postgresql+psycopg://user:secret@host/base"])
    recorded = describe_environment()
    assert "secret" not in json.dumps(recorded)
    assert recorded["command"][1:] == ["--study", "postgresql+psycopg://user@host/base"]
