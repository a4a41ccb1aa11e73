"""A database that asks for a password: it is used, and neither shown nor stored."""

import json
import signal
import subprocess
from types import SimpleNamespace

import pytest

from lgfast.config import dump_yaml, replace
from lgfast.sweep import launch, storage
from lgfast.sweep.command import stored_place
from lgfast.train import main
from tests.postgres import missing, postgres
from tests.processes import Forked
from tests.runs import tiny_config

PASSWORD = "s3cret"


@pytest.fixture(autouse=True)
def signals(monkeypatch):
    monkeypatch.setattr(storage, "RETRY_S", 0.01)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def url():
    """Of the database, without the password."""
    if reason := missing():
        pytest.skip(reason)
    with postgres(PASSWORD) as url:
        yield url


def with_secret(url):
    return url.replace("lgfast@", f"lgfast:{PASSWORD}@")


def holds(folder, text):
    return [str(path) for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


@pytest.mark.slow
def test_a_password_is_used_by_every_process_and_neither_shown_nor_stored(url, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "subprocess", SimpleNamespace(Popen=Forked, STDOUT=subprocess.STDOUT))
    base, out = tmp_path / "base.yaml", tmp_path / "out"
    base.write_text(dump_yaml(replace(tiny_config(tmp_path), {"run_dir": "", "epochs": 1})))
    start = ["--config", str(base), "--sweep", "optim.lr=1e-3,4e-3", "--study", with_secret(url), "--out", str(out)]
    assert main([*start, "--budget", "0s"]) == 0
    assert main(["--study", with_secret(url), "--budget", "0s"]) == 0  # joins, in a folder of its own
    assert json.loads((out / "sweep.json").read_text())["study"] == url

    assert main(["--resume", str(out)]) == 2
    first = capfd.readouterr()
    err = first.err
    assert f"cannot open {url}: " in err and "no password supplied" in err and "--resume FOLDER --study URL" in err
    assert "PGPASSWORD, ~/.pgpass" in err

    assert main(["--resume", str(out), "--study", with_secret(url), "--workers", "2"]) == 0
    second = capfd.readouterr()
    assert "best: setting" in second.out
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    assert main(["--resume", str(out)]) == 0
    shown = "".join(text for one in (first, second, capfd.readouterr()) for text in one)
    assert PASSWORD not in shown and f"--study {url} " in shown
    assert holds(tmp_path, url) and not holds(tmp_path, PASSWORD)


def test_resume_takes_no_other_study(tmp_path, capsys):
    (tmp_path / "sweep.json").write_text(json.dumps({"study": "postgresql://me@host/one", "name": "lgfast"}))
    assert main(["--resume", str(tmp_path), "--study", "postgresql://me:s3cret@host/two"]) == 2
    err = capsys.readouterr().err
    assert "is kept in postgresql://me@host/one, not postgresql://me@host/two" in err


def test_errors_hold_no_part_of_a_password(monkeypatch):
    for password, words in (("s3@cret", "write %40"), ("s3cret", "cannot open")):
        with pytest.raises(ValueError, match=words) as caught:
            storage.open_storage(f"postgresql+psycopg://me:{password}@127.0.0.1:1/base")
        assert "s3" not in str(caught.value) and "cret" not in str(caught.value)


@pytest.mark.parametrize("place", ["sqlite:////data/a:b@c/study.db", "/data/a:b@c/study.journal"])
def test_other_places_are_stored_as_they_are(place):
    assert stored_place(place) == place
