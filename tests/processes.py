"""Real processes that run `lgfast.train.main`, forked from a server that has imported it: they start at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from pathlib import Path

import torch

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["lgfast.train", "lgfast.sweep.command"])


def _main(arguments: tuple[str, ...], out: Path, err: Path) -> None:
    for path, stream in ((out, sys.stdout), (err, sys.stderr)):
        with path.open("w") as file:
            os.dup2(file.fileno(), stream.fileno())
    torch.set_num_threads(1)
    from lgfast.train import main

    sys.exit(main(list(arguments)))


class TrainProcess:
    """`python -m lgfast.train ARGUMENTS` with one thread, its output kept in `folder`."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        number = len(list(folder.glob("process-*.out")))
        self.out, self.err = (folder / f"process-{number}.{name}" for name in ("out", "err"))
        self.out.touch()
        self._process = context.Process(target=_main, args=(arguments, self.out, self.err))
        self._process.start()

    def poll(self) -> int | None:
        """Exit code, or None while it runs."""
        return self._process.exitcode

    def send(self, number: signal.Signals) -> None:
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)

    def communicate(self) -> tuple[str, str]:
        """Output and errors, when it has ended."""
        return self.finish()[1:]

    def finish(self, timeout: float = 300) -> tuple[int, str, str]:
        """Exit code, as `subprocess` gives it, output and errors; a process that does not end is killed."""
        self._process.join(timeout)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
            raise AssertionError(f"still running after {timeout} s:\n{self.out.read_text()}\n{self.err.read_text()}")
        return self._process.exitcode, self.out.read_text(), self.err.read_text()
