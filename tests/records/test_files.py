"""Files are written whole under names that nobody foresees."""

import os
import secrets

import pytest

from lgfast.records import files
from lgfast.records.files import WriteError, atomic_path, remove_leftovers, write_text


def test_two_writers_of_one_file_do_not_meet(tmp_path, monkeypatch):
    """As in two containers that share a folder, where both may be process 1."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    path = tmp_path / "result.json"
    with atomic_path(path) as first, atomic_path(path) as second:
        first.write_text("first")
        second.write_text("second")
        assert first != second and first.read_text() == "first"
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_name_that_is_taken_is_not_written_to(tmp_path, monkeypatch, is_folder):
    """Another user's link at the temporary name would lead the writing elsewhere."""
    monkeypatch.setattr(secrets, "token_hex", lambda size: "0" * 2 * size)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    (tmp_path / f".new.{'0' * 16}.tmp").symlink_to(elsewhere)
    with (
        pytest.raises(WriteError, match=r"could not write .*new: File exists"),
        atomic_path(tmp_path / "new", is_folder),
    ):
        pytest.fail("opened")
    assert elsewhere.read_text() == "mine" and not (tmp_path / "new").exists()


def test_a_folder_is_refused_before_the_work(tmp_path):
    (tmp_path / "folder").mkdir()
    with (
        pytest.raises(WriteError, match=r"could not write .*folder: Is a directory; what was there is intact"),
        atomic_path(tmp_path / "folder"),
    ):
        pytest.fail("opened")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_file_has_the_mode_of_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_text(tmp_path / "a", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~umask


def test_names_of_files_are_written_as_the_system_has_them(tmp_path):
    write_text(tmp_path / "page.html", "na\u00efve " + os.fsdecode(b"caf\xe9.png"))
    assert (tmp_path / "page.html").read_bytes() == "na\u00efve caf".encode() + b"\xe9.png"


def test_what_fails_leaves_the_earlier_file_alone(tmp_path):
    path = tmp_path / "a"
    write_text(path, "before")
    with pytest.raises(KeyError), files.atomic_path(path) as temporary:
        temporary.write_text("after")
        raise KeyError
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_what_killed_processes_left_is_removed(tmp_path):
    with atomic_path(tmp_path / "kept") as temporary:
        left = temporary.name
    (tmp_path / left).write_text("half")
    (tmp_path / left.replace("kept", "step")).mkdir()
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
