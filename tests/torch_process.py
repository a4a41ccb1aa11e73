"""`python -c CODE` with torch imported already, and nothing else: forked from a server, it starts 1.7 s sooner."""

from __future__ import annotations

import atexit
import functools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

SERVER = """
import json, os, sys, traceback, types
import torch

def run(code, arguments, folder, environment, files):
    for number, file in enumerate(files):
        os.dup2(os.open(file, os.O_RDWR), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv, main = ["-c", *arguments], types.ModuleType("__main__")
    sys.modules["__main__"] = main
    status = 0
    try:
        exec(compile(code, "<string>", "exec"), vars(main))
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)

for line in sys.stdin:
    if not (pid := os.fork()):
        run(*json.loads(line))
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@functools.cache
def _server() -> subprocess.Popen:
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    atexit.register(server.communicate)  # it ends where its input does
    return server


def _answer(server: subprocess.Popen, timeout: float) -> int:
    """The exit code. Without one in time the server is ended, and what it runs: it would answer another request."""
    try:
        if not select.select([server.stdout], [], [], timeout)[0]:
            raise AssertionError(f"still running after {timeout} s")
        return int(server.stdout.readline())
    except BaseException:
        _server.cache_clear()
        os.killpg(server.pid, signal.SIGKILL)
        raise


def run(
    code: str,
    arguments: Sequence[str] = (),
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 300,
) -> subprocess.CompletedProcess:
    """As `subprocess.run` of `python -c CODE ARGUMENTS`, with output and errors as text.

    The environment counts from the import of lgfast on: torch was imported with that of the tests.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = (Path(folder, name) for name in ("out", "err"))
        out.touch(), err.touch()
        request = [code, list(arguments), str(cwd or Path.cwd()), dict(os.environ if env is None else env)]
        server = _server()
        server.stdin.write(json.dumps([*request, [os.devnull, str(out), str(err)]]) + "\n")
        server.stdin.flush()
        try:
            status = _answer(server, timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}:\n{out.read_text()}\n{err.read_text()}") from None
        return subprocess.CompletedProcess(code, status, out.read_text(), err.read_text())
