"""Try every CUDA kernel before anything relies on it: is it right, repeatable, capturable, and how fast?

    python -m benchmarks.smoke [--kernels feature_mse,augment] [--seconds 25] [--switches FILE] [--out FOLDER]

Each kernel has a process of its own, which is ended if it has not answered after --seconds. The process takes a small
shape, then that of a DeiT-Ti step. On each it compares the kernel with float64 (augment with the CPU's kernel), runs it
again, captures it, replays it on other inputs, and times it: the median of 50 replays, without the host's time. Every
kernel gets one line, the worst last. --switches receives the value of LGFAST_DISABLE with which to go on without the
kernels that failed. Exit codes: 0, all kernels are right; 1, some are not.
"""

from __future__ import annotations

import argparse
import importlib
import math
import multiprocessing
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.kernels.table import Kernel

if TYPE_CHECKING:
    from benchmarks.row_file import RowFile

SHAPES = ("small", "target")
START_S = 90.0  # time that a process may take to import torch
AHEAD = 3  # processes that import torch while another is at work
GRACE_S = 5.0  # time to wait for a killed process, which a driver may hold
OK, WRONG, MISSING, FAILS, HANGS = "ok", "wrong", "missing", "fails", "hangs"  # from good to bad


@dataclass
class Finding:
    """The result of one kernel: its status, the reason, and the answer on each shape."""

    kernel: str
    status: str = OK
    reason: str = ""
    shapes: dict[str, dict[str, object]] = field(default_factory=dict)


class Trial:
    """A process that examines one kernel once it is told to begin.

    Args:
        table: module with KERNELS, prepare() and examine(), such as benchmarks.kernels.table.
    """

    def __init__(self, table: str, name: str, disabled: str, device: str) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        arguments = (table, name, disabled, device, theirs)
        self.process = context.Process(target=serve, args=arguments, name=name, daemon=True)
        self.process.start()
        theirs.close()

    def finding(self, seconds: float) -> Finding:
        """Tell the process to begin, and wait for its answer."""
        found, shape = Finding(self.name), "start"
        try:
            self.receive(START_S)
            self.connection.send("begin")
            end = time.monotonic() + seconds
            for shape in SHAPES:
                kind, answer = self.receive(end - time.monotonic())
                if kind != OK:
                    return Finding(self.name, kind, f"{shape}: {answer}", found.shapes)
                found.shapes[shape] = answer
        except TimeoutError as error:
            return Finding(self.name, HANGS, f"{shape}: {error}", found.shapes)
        except (EOFError, BrokenPipeError):
            self.process.join(GRACE_S)
            return Finding(self.name, FAILS, f"{shape}: {ending(self.process.exitcode)}", found.shapes)
        finally:
            self.close()
        found.reason = "; ".join(text for shape, answer in found.shapes.items() if (text := fault(shape, answer)))
        found.status = WRONG if found.reason else OK
        return found

    def receive(self, seconds: float) -> tuple[str, object]:
        if not self.connection.poll(max(seconds, 0)):
            raise TimeoutError("no answer in time")
        return self.connection.recv()

    def close(self) -> None:
        """End the process; leave one that the driver holds to itself."""
        self.process.kill()
        self.process.join(GRACE_S)
        self.connection.close()


def ending(code: int | None) -> str:
    if code is None:
        return "no answer, and it does not end"
    return f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"


def fault(shape: str, answer: dict[str, object]) -> str:
    """Say what is wrong with the result on a shape, or return ""."""
    share = answer["error_share"]
    faults = [] if share <= 1 else [f"error {share:.3g} times what is allowed"]  # NaN is wrong
    faults += [] if answer["repeats"] else ["two runs differ"]
    faults += [] if answer["replays"] else ["a captured run differs from an eager one"]
    return f"{shape}: {', '.join(faults)}" if faults else ""


def serve(table: str, name: str, disabled: str, device: str, connection: Connection) -> None:
    """Run in the process of one kernel: import, wait for the word to begin, send the answer on each shape."""
    os.environ["LGFAST_DISABLE"] = disabled
    try:
        module = importlib.import_module(table)
        module.prepare()
        connection.send((OK, "ready"))
        connection.recv()
        for shape in SHAPES:
            connection.send((OK, module.examine(name, shape, device)))
        connection.recv()  # wait to be ended: a process that ends at once may lose what it sent
    except (NotImplementedError, ImportError, AttributeError) as error:  # torch's, for an operation without a kernel
        connection.send((MISSING, first_line(error)))
    except EOFError:
        return
    except Exception as error:
        connection.send((FAILS, first_line(error)))


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:150]}"


def findings(table: str, names: Sequence[str], seconds: float, device: str) -> Iterator[Finding]:
    """Yield the finding of each kernel in turn; the processes of the next kernels start while one works."""
    kernels, waiting, started = importlib.import_module(table).KERNELS, deque(names), deque()
    try:
        while waiting or started:
            while waiting and len(started) <= AHEAD:
                name = waiting.popleft()
                started.append(Trial(table, name, kernels[name].disabled, device))
            yield started.popleft().finding(seconds)
    finally:
        for trial in started:
            trial.close()


def switches(kernels: dict[str, Kernel], found: dict[str, Finding]) -> list[str]:
    """Return the names for LGFAST_DISABLE that switch off the kernels that failed."""
    names = set()
    for name, finding in found.items():
        kernel = kernels[name]
        if finding.status == OK or not kernel.switch:
            continue
        steps_in = kernel.fallback in found and found[kernel.fallback].status == OK
        names.add(kernel.switch if steps_in or not kernel.fallback else kernel.whole)
    return sorted(names)


def line(finding: Finding) -> str:
    """Return the printed line of a kernel."""
    target = finding.shapes.get("target") or {}
    share = max((answer["error_share"] for answer in finding.shapes.values()), default=math.nan)
    time_us = f"{1e3 * target['median_ms']:9.1f} us" if "median_ms" in target else " " * 12
    error = f"{share:6.2g} of the error allowed" if finding.shapes else ""
    return f"{finding.kernel:<30} {finding.status:<8} {time_us}  {error}  {finding.reason}".rstrip()


def rows(finding: Finding) -> Iterator[dict]:
    """Yield rows for the CSV: one for each shape with an answer, and one that says what failed."""
    for shape, answer in finding.shapes.items():
        about = {"op": finding.kernel, "provider": "lgfast", "mode": shape, "dtype": "bfloat16"}
        yield {**about, **answer, "error": fault(shape, answer)}
    if finding.status not in (OK, WRONG):
        yield {"op": finding.kernel, "provider": "lgfast", "mode": finding.status, "error": finding.reason}


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = options.add_argument
    add("--kernels", default="", metavar="NAMES", help="comma-separated; default: all")
    add("--seconds", type=float, default=25, help="time limit of a kernel; default 25")
    add("--device", default="cuda")
    add("--switches", type=Path, help="file for the value of LGFAST_DISABLE")
    add("--out", type=Path, help="folder of the CSV; default: none is written")
    add("--table", default="benchmarks.kernels.table", help="module that lists the kernels; rehearsals have their own")
    return options


def chosen(text: str, known: Sequence[str]) -> list[str]:
    names = text.split(",") if text else list(known)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"--kernels: unknown {unknown[0]!r}; known: {', '.join(known)}")
    return names


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    kernels = importlib.import_module(options.table).KERNELS
    try:
        names = chosen(options.kernels, list(kernels))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found: dict[str, Finding] = {}
    file = None
    for finding in findings(options.table, names, options.seconds, options.device):
        found[finding.kernel] = finding
        print(line(finding), flush=True)
        if options.switches:
            options.switches.write_text(",".join(switches(kernels, found)))
        if options.out:
            file = file or row_file(options.device, options.out)
            for row in rows(finding):
                file.add(row)
    order = (OK, WRONG, MISSING, FAILS, HANGS)
    print(f"\n{len(found)} kernels, the worst last:")
    for finding in sorted(found.values(), key=lambda finding: order.index(finding.status)):
        print(line(finding))
    if off := switches(kernels, found):
        print(f"go on with LGFAST_DISABLE={','.join(off)}")
    return int(any(finding.status != OK for finding in found.values()))


def row_file(device: str, folder: Path) -> RowFile:
    """Open the CSV of this run; torch is imported while the kernels' processes import it too."""
    import torch

    from benchmarks.row_file import RowFile

    return RowFile("smoke", torch.device(device), folder)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # does not wait for processes that a driver holds
