"""A PostgreSQL server of the tests' own: on loopback, in a temporary folder, gone afterwards."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

FOLDERS = ["/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql*/bin"]


def binary(name: str) -> str | None:
    """Path of a server program; distributions keep them outside PATH."""
    found = [str(path) for folder in FOLDERS for path in sorted(Path("/").glob(f"{folder[1:]}/{name}"))]
    return shutil.which(name) or (found[-1] if found else None)


def account() -> str | None:
    """The server refuses to run as root; then the account that its package made. None: the caller's own."""
    if os.geteuid():
        return None
    return next((user.pw_name for user in pwd.getpwall() if user.pw_name == "postgres"), "nobody")


def missing() -> str | None:
    """Why no server can be started here, or None."""
    if not (binary("initdb") and binary("postgres")):
        return "needs the PostgreSQL server programs initdb and postgres"
    if importlib.util.find_spec("psycopg") is None:
        return "needs the PostgreSQL driver psycopg"
    return None


@contextlib.contextmanager
def postgres(password: str = "") -> Iterator[str]:
    """URL of an empty database, without the password; the server asks for one if it is given."""
    user, folder = account(), Path(tempfile.mkdtemp(prefix="lgfast-postgres-", dir="/tmp"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    if user:
        shutil.chown(folder, user)
    data, quiet = str(folder / "data"), {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    run = {"user": user, "cwd": folder, **quiet}
    (folder / "password").write_text(password)
    asked = ["-A", "scram-sha-256", "--pwfile", str(folder / "password")] if password else ["-A", "trust"]
    made = subprocess.run(
        [binary("initdb"), "-D", data, "-U", "lgfast", *asked, "-N", "-E", "UTF8", "--locale=C"], **run
    )
    assert made.returncode == 0, made.stderr
    server = subprocess.Popen(
        [binary("postgres"), "-D", data, "-h", "127.0.0.1", "-p", port, "-k", "", "-c", "fsync=off"], **run
    )
    try:
        wait_for_server(server, f"host=127.0.0.1 port={port} user=lgfast dbname=postgres", password)
        yield f"postgresql+psycopg://lgfast@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)  # a fast shutdown, without waiting for clients to leave
        server.communicate(timeout=300)
        shutil.rmtree(folder)


def wait_for_server(server: subprocess.Popen, place: str, password: str, timeout: float = 300) -> None:
    import psycopg

    deadline = time.monotonic() + timeout
    while True:
        assert server.poll() is None, server.communicate()[1]
        try:
            psycopg.connect(place, password=password or None).close()
            return
        except psycopg.OperationalError:
            assert time.monotonic() < deadline, "the PostgreSQL server did not come up"
            time.sleep(0.1)
