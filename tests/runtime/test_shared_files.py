"""Files in folders that others may write to, and their locks."""

import errno
import multiprocessing
import os
import stat

import pytest

from lgfast.runtime.locks import file_lock
from lgfast.runtime.shared_files import StrangerError, check_owner, new_file, open_own, owners, remove_leftovers


def test_a_new_file_takes_its_place_when_it_is_whole(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with new_file(path) as file:
        file.write(b"after")
        assert path.read_bytes() == b"before"
        (temporary,) = set(tmp_path.iterdir()) - {path}
    assert path.read_bytes() == b"after" and not temporary.exists()


def test_a_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with pytest.raises(OSError, match="full"), new_file(path) as file:
        file.write(b"after")
        raise OSError(errno.ENOSPC, "full")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("file", b"before")]


def test_names_of_new_files_differ_and_what_lies_there_is_not_opened(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_bytes(b"kept")
    monkeypatch.setattr("secrets.token_hex", lambda count: "same")
    (tmp_path / ".file.same.partial").symlink_to(victim)
    with pytest.raises(FileExistsError), new_file(tmp_path / "file"):
        pass
    assert victim.read_bytes() == b"kept"
    monkeypatch.undo()
    with new_file(tmp_path / "file"), new_file(tmp_path / "file"):  # two processes at once do not meet
        assert len(list(tmp_path.glob(".file.*.partial"))) == 3


def test_leftovers_of_this_file_alone_are_removed(tmp_path):
    names = ("file[1].partial", ".file[1].0f.partial", ".file1.0f.partial", "file[1]", ".file[1].partial")
    for name in names:
        (tmp_path / name).write_bytes(b"")
    remove_leftovers(tmp_path / "file[1]")
    assert {path.name for path in tmp_path.iterdir()} == set(names[2:])


def test_only_regular_files_of_trusted_users_are_opened(tmp_path):
    path, link, pipe = tmp_path / "file", tmp_path / "link", tmp_path / "pipe"
    path.write_bytes(b"content")
    link.symlink_to(path)
    os.mkfifo(pipe)
    with open_own(path, owners(tmp_path)) as file:
        assert file.read() == b"content"
    assert owners() <= owners(tmp_path) == {os.geteuid(), 0, tmp_path.stat().st_uid}
    for place, message in ((link, "symbolic link"), (pipe, "no regular file")):
        with pytest.raises(StrangerError, match=message), open_own(place, owners()):
            pass
    with pytest.raises(StrangerError, match=f"belongs to user {os.geteuid()}"), open_own(path, {12345}):
        pass
    check_owner(link, owners())
    with pytest.raises(StrangerError):
        check_owner(link, {12345})
    with pytest.raises(FileNotFoundError), open_own(tmp_path / "absent", owners()):
        pass


def hold(path, reached, end):
    with file_lock(path):
        reached.set()
        end.wait(60)


def test_a_lock_is_held_by_one_process(tmp_path):
    context = multiprocessing.get_context("fork")
    reached, end, second = context.Event(), context.Event(), context.Event()
    first = context.Process(target=hold, args=(tmp_path / "folder" / "lock", reached, end))
    first.start()
    assert reached.wait(60)
    other = context.Process(target=hold, args=(tmp_path / "folder" / "lock", second, end))
    other.start()
    assert not second.wait(0.3)
    end.set()
    assert second.wait(60)
    for process in (first, other):
        process.join(60)
        assert process.exitcode == 0


def test_a_lock_may_be_another_users(tmp_path, monkeypatch):
    """This process can read it, and cannot write to it nor make one."""
    path, opened = tmp_path / "lock", os.open
    path.touch()

    def deny(name, flags, *arguments, **options):
        if flags & (os.O_RDWR | os.O_CREAT):
            raise PermissionError(errno.EACCES, "Permission denied", str(name))
        return opened(name, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", deny)
    held = []
    for _ in range(2):
        with file_lock(path):
            held.append(True)
        path.unlink(missing_ok=True)
    assert held == [True, True] and not path.exists()


def test_a_lock_does_not_follow_a_link(tmp_path):
    (tmp_path / "lock").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="lock: is a symbolic link; remove it"), file_lock(tmp_path / "lock"):
        pass
    assert not (tmp_path / "victim").exists()


def test_a_lock_has_the_mode_of_the_umask(tmp_path):
    before = os.umask(0o002)
    try:
        with file_lock(tmp_path / "lock"):
            assert stat.S_IMODE((tmp_path / "lock").stat().st_mode) == 0o664
    finally:
        os.umask(before)
