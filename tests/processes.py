"""Real processes of lgfast's commands, forked from a server that has imported them: they start at once."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path

import torch

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["lgfast.train", "lgfast.sweep.command"])


def train(arguments: Sequence[str]) -> None:
    """`python -m lgfast.train ARGUMENTS` in this process."""
    from lgfast.train import main

    sys.exit(main(list(arguments)))


def torchrun(arguments: Sequence[str]) -> None:
    """`torchrun --standalone ARGUMENTS` in this process, the last `-m lgfast.train ...`; it forks the ranks."""
    from torch.distributed import run
    from torch.distributed.launcher.api import elastic_launch

    standalone = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    config, _, words = run.config_from_args(run.parse_args([*standalone, "--start-method", "fork", *arguments]))
    elastic_launch(config, train)(words[words.index("lgfast.train") + 1 :])


@dataclass(frozen=True)
class Program:
    """`python -m NAME ARGUMENTS`, or `python NAME.py ARGUMENTS`, in a folder, with an environment."""

    name: str
    folder: Path
    environment: dict[str, str]

    def __call__(self, arguments: Sequence[str]) -> None:
        os.chdir(self.folder)
        os.environ.clear()
        os.environ.update(self.environment)
        sys.argv = [self.name, *arguments]
        sys.modules.pop(self.name, None)  # it runs anew, as `__main__`
        if self.name.endswith(".py"):
            runpy.run_path(self.name, run_name="__main__")
        else:
            runpy.run_module(self.name, run_name="__main__", alter_sys=True)


def _main(command: Callable[[Sequence[str]], None], arguments: Sequence[str], out: Path, err: Path) -> None:
    for path, stream in ((out, sys.stdout), (err, sys.stderr)):
        with path.open("a") as file:
            os.dup2(file.fileno(), stream.fileno())
    torch.set_num_threads(1)
    command(arguments)


class TrainProcess:
    """`python -m lgfast.train ARGUMENTS`, or another command, with one thread, its output kept in `folder`."""

    def __init__(self, folder: Path, *arguments: str, command: Callable[[Sequence[str]], None] = train) -> None:
        number = len(list(folder.glob("process-*.out")))
        self.out, self.err = (folder / f"process-{number}.{name}" for name in ("out", "err"))
        self.out.touch()
        self._process = context.Process(target=_main, args=(command, arguments, self.out, self.err))
        self._process.start()

    @property
    def pid(self) -> int:
        return self._process.pid

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


class Forked(TrainProcess):
    """Stands in for `subprocess.Popen` of `python -m MODULE ARGUMENTS`, whose output goes to a file."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], stdout: TextIOWrapper, **_: object) -> None:
        _python, _m, module, *arguments = command
        program = Program(module, Path.cwd(), dict(env))
        self.out = self.err = Path(stdout.name)
        self._process = context.Process(target=_main, args=(program, arguments, self.out, self.err))
        self._process.start()

    @property
    def returncode(self) -> int | None:
        return self.poll()

    send_signal = TrainProcess.send
