"""Open the storage of a study: a journal file, or a database that a URL names."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import optuna
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError

from lgfast.runtime.passwords import without_password
from lgfast.runtime.paths import user_path
from lgfast.sweep.journal_lock import JournalLock

RETRY_S = 1.0  # wait this long before opening a database again
# Matches what begins like a URL, with a scheme and one slash, or a database's name; it may hold a password.
LIKE_A_URL = re.compile(
    r"([a-z][a-z0-9+.-]*):/(?!/)|((?:sqlite|postgres(?:ql)?|mysql|mariadb|oracle|mssql|redis)(?:\+\w+)?):(?!//)", re.I
)
SECRET_PLACE = "LGFAST_STUDY"  # gives a worker process its study's URL with the password, which its arguments lack


def with_password(place: str) -> str:
    """Return the place with its password where the environment has one for it, else the place."""
    secret = os.environ.get(SECRET_PLACE, "")
    return secret if without_password(secret) == place else place


def is_url(place: str) -> bool:
    """Whether a study's place is a database, not a journal file.

    Raises:
        ValueError: it is a URL with a slash too few, which must not become the name of a file.
    """
    if found := LIKE_A_URL.match(place):
        scheme = found[1] or found[2]
        raise ValueError(f"--study: a URL that begins with {scheme}: goes on with two slashes, as in {scheme}://...")
    return "://" in place


def open_storage(place: str) -> optuna.storages.BaseStorage:
    """Open a journal file by its path or a database by its URL.

    Raises:
        ValueError: it cannot be opened; the message holds no password.
    """
    return open_database(place) if is_url(place) else open_journal(place)


class Journal(optuna.storages.journal.JournalFileBackend):
    """A journal file whose errors name it."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        try:
            super().append_logs(logs)
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._file_path) from error


def open_journal(place: str) -> optuna.storages.JournalStorage:
    path = user_path(place).resolve()
    if path.is_dir():
        raise ValueError(f"--study: {place} is a folder; name a journal file, e.g. {Path(place) / 'study.journal'}")
    if path.exists() and not path.is_file():
        raise ValueError(f"--study: {place} is a device or a pipe; name a journal file")
    lock = JournalLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        drop_half_line(path, lock)
        return optuna.storages.JournalStorage(Journal(str(path), lock))
    except OSError as error:
        raise unwritable(place, error) from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"--study: {place} is damaged or no journal of a sweep: line {damaged_line(path)} cannot be read; "
            "keep a copy, remove that line, and join again"
        ) from None


def unwritable(place: str, error: OSError) -> ValueError:
    return ValueError(f"--out or --study: cannot write {place}: {error.strerror}; name a place that can be written")


def drop_half_line(path: Path, lock: JournalLock) -> None:
    """Remove what a full disk left of a last line. Readers ignore it, but the next line would join it."""
    if not path.exists() or path.read_bytes()[-1:] in (b"", b"\n"):
        return
    lock.acquire()  # another process may still be writing that line
    try:
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
    finally:
        lock.release()


def damaged_line(path: Path) -> int:
    """Return the number of the first line that is no operation of a journal; the last line's where all are."""
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            json.loads(line)["op_code"]
        except (ValueError, KeyError, TypeError):
            return number
    return len(lines)


def open_database(place: str) -> optuna.storages.RDBStorage:
    shown = without_password(place)
    if place.partition("?")[0].count("@") > 1:
        raise ValueError(f"--study: {shown}: an @ in the password ends it; write %40 for it")
    for is_last in (False, True):
        try:
            return open_sqlite(place) if place.startswith("sqlite") else optuna.storages.RDBStorage(place)
        except ImportError as error:
            raise ValueError(
                f"--study: {shown} needs a database driver ({error.__cause__}); "
                "for PostgreSQL: pip install 'psycopg[binary]' and postgresql+psycopg://..."
            ) from None
        except (SQLAlchemyError, ValueError) as error:
            if is_last:
                raise ValueError(f"--study: cannot open {shown}: {reason_of(error, place)}") from None
            time.sleep(RETRY_S)  # another process may have been making the tables
    raise AssertionError


def open_sqlite(place: str) -> optuna.storages.RDBStorage:
    """Open SQLite so that every transaction takes the write lock when it begins. SQLite has no SELECT FOR UPDATE, by
    which Optuna lets only one process claim a trial."""
    patient = {
        "timeout": 60,
        "isolation_level": None,
    }  # seconds to wait for a writer; None: the driver begins no transaction itself
    storage = optuna.storages.RDBStorage(place, engine_kwargs={"connect_args": patient})
    event.listen(storage.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return storage


def reason_of(error: Exception, place: str) -> str:
    """Return the first line of a database's error, and how to give a password if it asks for one."""
    reason = str(error).replace(place, without_password(place)).splitlines()[0]
    if "password" not in reason:
        return reason
    return (
        f"{reason}; name the password in --study (it is not stored; with --resume FOLDER --study URL too) "
        "or where the driver looks for it (PostgreSQL: PGPASSWORD, ~/.pgpass)"
    )
