"""Trains again and again, each time with one file-system call that fails or kills, and checks what is left.

    python -m tests.faults.harness --jobs 2                  every call in every way; this is `make faults`
    python -m tests.faults.harness --sample 4 --seed 0       some of them, as in the tests
    python -m tests.faults.harness --only KILL:17            one of them

After each fault the run is continued as a person would. It must end with the same bits as the undisturbed one; a call
that failed must have ended the command with one line, or not have mattered. One process imports everything and forks
for each attempt.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
LIBRARY = HERE.parents[1] / "build" / "faults" / "inject.so"
Outcome = dict[str, Any]  # what a run ended with, by name
COUNT, KILL, TEAR, FAIL, FULL = range(5)  # as in inject.c
WAYS = {"KILL": (KILL, 0), "TEAR": (TEAR, 0), "EIO": (FAIL, errno.EIO), "ENOSPC": (FULL, errno.ENOSPC)}


class Fault(NamedTuple):
    """A fault: what happens, and at which call, counted from 1."""

    way: str
    at: int

    def __str__(self) -> str:
        return f"{self.way}:{self.at}"


class Ended(NamedTuple):
    """How a command ended: its exit status, negative for a signal, and its standard error."""

    status: int
    errors: str


# ---- one process that forks ------------------------------------------------------------------------------------------


def build() -> Path:
    """The library to preload, compiled where its source is newer."""
    source = HERE / "inject.c"
    if not LIBRARY.exists() or LIBRARY.stat().st_mtime < source.stat().st_mtime:
        LIBRARY.parent.mkdir(parents=True, exist_ok=True)
        compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            raise RuntimeError("the fault injection needs a C compiler, got none; install gcc, or set CC")
        fresh = LIBRARY.with_suffix(f".{os.getpid()}.so")
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", fresh, source, "-ldl"], check=True)
        fresh.replace(LIBRARY)
    return LIBRARY


def command(*arguments: str) -> tuple[list[str], dict[str, str]]:
    """Return the command and environment that start this file with the library preloaded."""
    environment = os.environ | {"LD_PRELOAD": str(build()), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return [sys.executable, "-m", "tests.faults.harness", *arguments], environment


def forked(task: Callable[[], int]) -> int:
    """Run the task in a copy of this process, which ends with the task's result; return the copy's process id."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    status = 99
    try:
        status = task()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def train(folder: Path, fault: Fault | None, *arguments: str) -> Ended:
    """`python -m lgfast.train` in a folder, beneath which the fault strikes."""
    from lgfast.train import main

    def task() -> int:
        os.chdir(folder)
        for name, stream in (("out", sys.stdout), ("err", sys.stderr)):
            with open(f"{folder}.{name}", "w") as file:  # beside the folder, where nothing strikes
                os.dup2(file.fileno(), stream.fileno())
        library = ctypes.CDLL(None)
        way, number = (COUNT, 0) if fault is None else WAYS[fault.way]
        library.arm(os.fsencode(folder), way, ctypes.c_long(fault.at if fault else 0), number)
        status = main(list(arguments))
        Path(f"{folder}.calls").write_text(str(library.calls()))
        return status

    status = os.waitstatus_to_exitcode(os.waitpid(forked(task), 0)[1])
    return Ended(status, Path(f"{folder}.err").read_text())


# ---- one attempt -----------------------------------------------------------------------------------------------------


def write_config(folder: Path) -> None:
    """A guided run of a few steps and its teacher, all beneath the folder."""
    from lgfast.config import dump_yaml
    from tests.runs import tiny_config

    folder.mkdir(parents=True)
    short = {"epochs": 2, "max_steps": 9, "log.save_every_steps": 4, "log.tensorboard": "true", "eval.every_epochs": 1}
    places = {"run_dir": "run", "teacher.cache": "cache", "teacher.recipe": "teacher.yaml"}
    (folder / "config.yaml").write_text(dump_yaml(tiny_config(folder, **short | places)))


def outcome(folder: Path) -> Outcome:
    """Return what a run ended with, without times."""
    from tests.runs import metrics

    run = folder / "run"
    result = json.loads((run / "result.json").read_text())
    rows = [line.rpartition(",")[0] for line in (run / "summary.csv").read_text().splitlines()]
    weights = {name: content(run / f"{name}.safetensors") for name in ("best", "last")}
    return {"result": result | {"seconds": 0}, "summary": rows, "metrics": metrics(run), **weights}


def content(path: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Return the bits of a weights file's tensors and its metadata; safetensors writes its header in any order."""
    from lgfast.records.checkpoint import read_weights

    tensors, metadata = read_weights(path)
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}, metadata


def go_on(folder: Path) -> Ended:
    """Do what a person does after a run ended early: continue it, or give the same command if it never began."""
    if (folder / "run" / "config.yaml").exists():
        return train(folder, None, "--resume", "run")
    return train(folder, None, "--config", "config.yaml")


def attempt(folder: Path, fault: Fault, expected: Outcome) -> str:
    """Say what was wrong after the fault; return "" where all was right."""
    write_config(folder)
    ended = train(folder, fault, "--config", "config.yaml")
    if wrong := judge(ended, fault):
        return wrong
    if ended.status != 0:
        again = go_on(folder)
        if again.status != 0:
            return f"cannot be continued: {again.status}: {again.errors}"
    found = outcome(folder)
    differs = [name for name in expected if found[name] != expected[name]]
    return f"ended otherwise: {', '.join(differs)}" if differs else ""


def judge(ended: Ended, fault: Fault) -> str:
    """Say what is wrong with the way in which the command with the fault ended."""
    lines = [line for line in ended.errors.splitlines() if not line.startswith("warning: ")]
    is_quiet = ended.status in (0, -signal.SIGKILL) and not lines
    if ended.status == -signal.SIGKILL and fault.way not in ("KILL", "TEAR"):
        return "was killed"
    is_said = ended.status == 2 and len(lines) == 1 and lines[0].startswith("error: ")
    return "" if is_quiet or is_said else f"ended with {ended.status}: {ended.errors}"


# ---- all of them -----------------------------------------------------------------------------------------------------


def attempts(calls: int, options: argparse.Namespace) -> list[Fault]:
    if options.only:
        return [Fault(way, int(at)) for way, _, at in (text.partition(":") for text in options.only)]
    generator, every = random.Random(options.seed), range(1, calls + 1)
    chosen = {way: generator.sample(every, options.sample) if options.sample else every for way in WAYS}
    return [Fault(way, at) for way, places in chosen.items() for at in places]


def run_all(faults: Sequence[Fault], jobs: int, place: Path, expected: Outcome) -> Iterator[tuple[Fault, str]]:
    """Yield each fault with what was wrong, in the order in which they end."""
    running: dict[int, Fault] = {}
    waiting = list(reversed(faults))
    while waiting or running:
        while waiting and len(running) < jobs:
            fault = waiting.pop()
            running[forked(lambda fault=fault: verdict(place / str(fault), fault, expected))] = fault
        pid, status = os.wait()
        fault = running.pop(pid)
        folder = place / str(fault)
        said = Path(f"{folder}.verdict")
        yield fault, said.read_text() if said.exists() else f"the harness itself failed ({status})"
        remove(folder)


def remove(folder: Path) -> None:
    """Remove an attempt's folder and the files beside it; KILL:1 leaves those of KILL:10, which may be running."""
    for path in (folder, *folder.parent.glob(f"{folder.name}.*")):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def verdict(folder: Path, fault: Fault, expected: Outcome) -> int:
    Path(f"{folder}.verdict").write_text(attempt(folder, fault, expected))
    return 0


def undisturbed(folder: Path) -> tuple[Outcome, int]:
    """Return outcome and number of calls of the run without a fault."""
    write_config(folder)
    ended = train(folder, None, "--config", "config.yaml")
    if ended.status != 0:
        raise RuntimeError(f"the undisturbed run ended with {ended.status}: {ended.errors}")
    return outcome(folder), int(Path(f"{folder}.calls").read_text())


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="attempts at a time")
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="so many calls for each way")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--only", nargs="+", metavar="WAY:CALL", help=f"these alone; ways: {', '.join(WAYS)}")
    options = parser.parse_args(arguments)
    if not hasattr(ctypes.CDLL(None), "arm"):
        program, environment = command(*arguments)
        os.execvpe(program[0], program, environment)
    import torch

    import lgfast.assembly.run
    import lgfast.train  # noqa: F401  once, for all that are forked
    from lgfast.records.events import EventFile

    torch.set_num_threads(1)
    began, wrong = time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="lgfast-faults-") as name:
        place = Path(name).resolve()
        os.environ["LGFAST_CACHE"] = str(place / "cache")
        EventFile(place / "events")  # imports what every run would
        expected, calls = undisturbed(place / "undisturbed")
        faults = attempts(calls, options)
        for fault, said in run_all(faults, options.jobs, place, expected):
            wrong += bool(said)
            print(f"{fault}: {said.strip()}" if said else f"{fault}: well", flush=True)
    print(f"{calls} calls; {len(faults)} attempts in {time.monotonic() - began:.0f} s, {wrong} went wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
