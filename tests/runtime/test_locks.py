"""A wait for a lock that another process holds is told, whatever the lock guards."""

import pytest
import torch

from lgfast.data import load_dataset
from lgfast.data.sources.download import fetch_missing
from lgfast.guidance import Teacher
from lgfast.guidance.offline import stored_rows
from lgfast.models import create_model
from lgfast.runtime import locks
from lgfast.runtime.locks import Waiting, file_lock
from lgfast.spec.augment import AugmentSpec
from tests.data.layouts import write_folder


class ToldError(Exception):
    """Ends a wait in a test."""


@pytest.fixture
def ending_at_its_line(monkeypatch):
    """A wait ends with the line that it prints."""

    def say(*words, **_):
        raise ToldError(*words)

    monkeypatch.setattr(locks, "PATIENCE_S", 0)
    monkeypatch.setattr(locks, "print", say, raising=False)


def wait_for(folder, action, line):
    """Hold every lock of the folder, as another process would, while `action` asks for one."""
    path = next(folder.glob("*.lock"))  # of the train images, or the only one
    with file_lock(path), pytest.raises(ToldError, match=f"waiting for another process, which {line}"):
        action()


def test_the_wait_for_images_is_told(tmp_path, monkeypatch, ending_at_its_line):
    monkeypatch.setenv("LGFAST_CACHE", str(tmp_path / "cache"))
    write_folder(tmp_path / "tree")
    load_dataset("folder", tmp_path / "tree")
    wait_for(tmp_path / "cache", lambda: load_dataset("folder", tmp_path / "tree"), r"decodes the images of .*\.lgfast")


def test_the_wait_for_a_teachers_maps_is_told(tmp_path, ending_at_its_line):
    teacher = Teacher(create_model("cifar_resnet8", num_classes=10), (0, 1, 2))
    images, spec = load_dataset("digits").subset(torch.arange(2)), AugmentSpec(image_size=8, teacher_size=8)
    arguments = (teacher, images, spec, torch.float32, tmp_path, torch.device("cpu"))
    stored_rows(*arguments)
    wait_for(tmp_path, lambda: stored_rows(*arguments), r"computes the teacher's maps in .*\.rows")


def test_the_wait_for_a_download_is_told(tmp_path, ending_at_its_line):
    def fetch():
        fetch_missing("set", tmp_path, [], lambda: True, "")

    fetch()
    wait_for(tmp_path, fetch, f"downloads set into {tmp_path}")


def test_a_short_wait_is_not_told_nor_any_by_other_ranks(monkeypatch, capsys):
    wait = Waiting("works")
    wait()
    monkeypatch.setattr(locks, "PATIENCE_S", 0)
    monkeypatch.setenv("RANK", "1")
    wait()
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "0")
    wait()
    assert capsys.readouterr().err == "waiting for another process, which works\n"
