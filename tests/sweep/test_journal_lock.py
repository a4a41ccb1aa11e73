"""The journal's lock keeps others out, and outlives no holder."""

import os
import subprocess
import sys
import threading
import time

import optuna
import pytest

from lgfast.sweep import journal_lock
from lgfast.sweep.journal_lock import JournalLock
from lgfast.sweep.storage import open_storage
from tests.clock import replaced_clock


@pytest.fixture
def journal(tmp_path, monkeypatch):
    """The journal of a sweep whose folder is a relative path, as by default."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "study.journal"


@pytest.fixture
def clock(monkeypatch):
    return replaced_clock(monkeypatch, journal_lock)


def append():
    """Write to the journal, as every start and every report does."""
    optuna.create_study(storage=open_storage("out/study.journal"), study_name="a study")


def test_one_thread_alone_holds_it(journal):
    held, most = 0, 0

    def work():
        nonlocal held, most
        lock = JournalLock(journal)
        for _ in range(20):
            lock.acquire()
            held += 1
            most = max(most, held)
            time.sleep(0.0001)
            held -= 1
            lock.release()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and not os.path.lexists(f"{journal}.lock")


def test_what_a_killed_process_left_is_broken_at_once(journal, clock):
    code = "import sys, os, signal; from pathlib import Path; from lgfast.sweep.journal_lock import JournalLock; "
    code += "JournalLock(Path(sys.argv[1])).acquire(); os.kill(os.getpid(), signal.SIGKILL)"
    subprocess.run([sys.executable, "-c", code, str(journal)], env=os.environ)
    assert os.path.islink(f"{journal}.lock")
    append()
    assert clock.now == 0 and not os.path.lexists(f"{journal}.lock")


@pytest.mark.parametrize("kind", ["dangling", "other machine", "file"])
def test_a_lock_whose_holder_cannot_be_asked_is_broken_after_a_while(journal, clock, capsys, kind):
    target = {"dangling": "out/study.journal", "other machine": "boot/pid|12|34|host|56"}.get(kind)
    os.symlink(target, f"{journal}.lock") if target else open(f"{journal}.lock", "w").close()
    append()
    assert 30 < clock.now < 31
    holder = "process 12 on host" if kind == "other machine" else "an unknown process"
    assert capsys.readouterr().err == f"waiting for {journal}.lock, held by {holder}\n"


def test_a_lock_that_changes_hands_is_waited_for(journal, clock, monkeypatch):
    """The journal is busy: at each look another process holds the lock."""
    monkeypatch.setattr(journal_lock, "machine", lambda: "another machine")
    other, own = JournalLock(journal), None
    monkeypatch.setattr(journal_lock, "machine", lambda: "this machine")
    own = JournalLock(journal)
    other.acquire()

    def give_back_and_take_again(seconds):
        clock.now += seconds
        other.release()
        if clock.now < 100:
            other.acquire()

    monkeypatch.setattr(clock, "sleep", give_back_and_take_again)
    own.acquire()
    assert clock.now >= 100 and own.read() == own._held


def test_a_lock_that_somebody_took_meanwhile_is_put_back(journal):
    lock = JournalLock(journal)
    lock.acquire()
    lock.break_open("somebody who was killed, and whose lock another one has broken by now")
    assert lock.read() == lock._held
    lock.release()
    lock.break_open("nobody")  # there is none any more
    assert list(journal.parent.iterdir()) == []


def test_a_lock_that_was_broken_is_not_given_back_by_its_late_holder(journal):
    late, other = JournalLock(journal), JournalLock(journal)
    late.acquire()
    late.break_open(late.read())
    other.acquire()
    late.release()
    assert other.read() == other._held
    other.release()
