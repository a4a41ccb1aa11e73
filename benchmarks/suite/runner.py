"""Run parts: each command in a process with a time limit. Keep what is finished in a file, and report failures."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.suite.parts import Command

ROOT = Path(__file__).resolve().parents[2]
GRACE_S = 30.0  # time between asking a process to stop, in which it may save, and ending it
HELD_S = 5.0  # time to wait for an ended process, which a driver may hold
SAVED = 128 + signal.SIGTERM  # exit code of a command that saved when asked to stop, and can go on

DONE, FAILED, OVER_TIME, UNFINISHED, SKIPPED = "done", "failed", "over time", "unfinished", "skipped"


@dataclass
class Record:
    """What the suite knows of one command."""

    status: str
    seconds: float = 0.0
    reason: str = ""
    files: list[str] = field(default_factory=list)
    sources: str = ""  # digest of the sources that it ran with


class State:
    """Records by part and command, in a file. The file is replaced as a whole, so it is never half written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        tree = json.loads(path.read_text()) if path.is_file() else {}
        self.parts = {name: {key: Record(**r) for key, r in records.items()} for name, records in tree.items()}

    def get(self, part: str, command: Command) -> Record | None:
        return self.parts.get(part, {}).get(command.key)

    def put(self, part: str, command: Command, record: Record) -> None:
        """Keep a record, and add to it seconds and files of earlier tries of the command."""
        earlier = self.get(part, command) or Record("")
        record.seconds += earlier.seconds
        record.files = list(dict.fromkeys(earlier.files + record.files))
        self.parts.setdefault(part, {})[command.key] = record
        self.save()

    def forget(self, part: str) -> None:
        if self.parts.pop(part, None) is not None:
            self.save()

    def save(self) -> None:
        tree = {name: {key: asdict(record) for key, record in r.items()} for name, r in self.parts.items()}
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(tree, indent=1))
        os.replace(temporary, self.path)


@dataclass
class Outcome:
    """The result of a part in one call; one line of the summary."""

    part: str
    status: str
    seconds: float
    files: list[str]
    reason: str
    is_unfinished: bool = False  # a command has not finished, whatever became of the others


Execute = Callable[[Command, list[str], float, Path], Record]


class Runner:
    """Runs the commands of parts that are not finished yet.

    Args:
        folder: of the suite; holds state.json, logs/ and results/.
        execute: runs a command with its arguments for at most so many seconds, and appends its output to a log.
        places: returns the values for the names in braces of a command; called before each command.
        missing: command -> the missing pieces that it needs.
        limit_s: seconds that a part may take in one call.
        sources: digest of the sources; a command that failed is tried again if they have changed.
    """

    def __init__(
        self,
        folder: Path,
        execute: Execute,
        places: Callable[[], dict[str, object]],
        missing: Callable[[Command], list[str]],
        limit_s: float,
        sources: str = "",
    ) -> None:
        self.sources = sources
        self.folder, self.execute, self.places, self.missing = folder, execute, places, missing
        self.limit_s = limit_s
        self.has_run = False  # whether a command has run in this call
        self.results = folder / "results"
        for path in (self.results, folder / "logs"):
            path.mkdir(parents=True, exist_ok=True)
        self.state = State(folder / "state.json")

    def run(self, part: str, commands: Sequence[Command], left_s: float = math.inf) -> Outcome:
        """Run the unfinished commands of a part in order; those that met their limit before come last.

        Args:
            left_s: seconds left to this call of the suite; counts if it is less than the part's own limit.
        """
        started, limit_s = time.monotonic(), min(self.limit_s, left_s)
        known = {command.key: self.state.get(part, command) for command in commands}
        pending = [command for command in commands if not self.is_over(known[command.key])]
        pending.sort(key=lambda command: (r := known[command.key]) is not None and r.status == OVER_TIME)
        for command in pending:
            left = limit_s - (time.monotonic() - started)
            if left <= 0:
                break
            limit = min(60 * command.limit or self.limit_s, self.limit_s)
            had_all = left >= 0.9 * limit
            if self.has_run and not had_all and left < 60 * command.minutes:
                continue  # the next call has the time that it needs
            if absent := self.missing(command):
                record = Record(SKIPPED, reason=f"missing {', '.join(absent)}")
            else:
                record = self.run_command(part, command, min(left, limit))
                self.has_run = True
            if record.status == OVER_TIME and not had_all:
                record.status = UNFINISHED  # other commands had used up its time; the next call starts with it
            self.state.put(part, command, record)
        return self.outcome(part, commands, time.monotonic() - started)

    def is_over(self, record: Record | None) -> bool:
        """Whether a command need not run: it is done, or it failed with the same sources."""
        if record is None:
            return False
        return record.status == DONE or (record.status == FAILED and record.sources == self.sources)

    def run_command(self, part: str, command: Command, limit_s: float) -> Record:
        before, started = self.files(), time.monotonic()
        record = self.execute(command, command.arguments(self.places()), limit_s, self.folder / "logs" / f"{part}.log")
        record.seconds, record.sources = time.monotonic() - started, self.sources
        record.files = sorted(path for path, changed in self.files().items() if before.get(path) != changed)
        return record

    def files(self) -> dict[str, float]:
        paths = [path for path in self.results.rglob("*") if path.is_file()]
        return {str(path.relative_to(self.results)): path.stat().st_mtime_ns for path in paths}

    def outcome(self, part: str, commands: Sequence[Command], seconds: float) -> Outcome:
        """Return the outcome of a part: the worst of its commands' outcomes. Skipped commands count as done."""
        records = [self.state.get(part, command) for command in commands]
        statuses = [UNFINISHED if record is None else record.status for record in records]
        worst = (FAILED, OVER_TIME, UNFINISHED, DONE, SKIPPED)
        status = next(status for status in worst if status in statuses)
        known = [record for record in records if record]
        reasons = list(dict.fromkeys(record.reason for record in known if record.reason))
        files = list(dict.fromkeys(path for record in known for path in record.files))
        return Outcome(part, status, seconds, files, "; ".join(reasons), UNFINISHED in statuses)


def run_process(
    command: Command,
    arguments: list[str],
    limit_s: float,
    log: Path,
    paths: Sequence[Path],
    variables: dict[str, str] | None = None,
    grace_s: float = GRACE_S,
) -> Record:
    """Run a command as a process in a session of its own. At the limit, ask it to stop, then end it with its children.

    Args:
        paths: folders that come first on its module path.
        variables: added to its environment, which is otherwise this process's.
        grace_s: seconds between asking it to stop and ending it.
    """
    line = [sys.executable, "-m", command.module, *arguments]
    python_path = os.pathsep.join([*map(str, paths), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": python_path, "PYTHONUNBUFFERED": "1"} | (variables or {})
    with log.open("a") as output:
        output.write(f"\n$ {' '.join(line)}\n")
        output.flush()
        process = subprocess.Popen(
            line, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            return judged(process.wait(limit_s), log)
        except subprocess.TimeoutExpired:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(grace_s)
            if process.returncode == SAVED:
                return Record(UNFINISHED, reason="saved at the time limit; the next call goes on")
            return Record(OVER_TIME, reason=f"not finished after {limit_s:.0f} s")
        except KeyboardInterrupt:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(grace_s)
            raise
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # ends the processes that it left behind
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(HELD_S)


def judged(code: int, log: Path) -> Record:
    if code == 0:
        return Record(DONE)
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return Record(FAILED, reason=f"{how}: {last_line(log)}")


def run_here(command: Command, arguments: list[str], limit_s: float, log: Path) -> Record:
    """Call a benchmark's main() in this process, without a time limit: for the dry run, to save a start of Python."""
    import torch

    threads, handlers = torch.get_num_threads(), {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    with log.open("a") as output, contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        print(f"\n> {command.module} {' '.join(arguments)}")
        try:
            code = importlib.import_module(command.module).main(arguments)
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            code = f"{type(error).__name__}: {error}"
        finally:
            torch.set_num_threads(threads)
            for number, handler in handlers.items():  # training installs handlers of its own
                signal.signal(number, handler)
    return Record(FAILED, reason=str(code).splitlines()[0]) if code else Record(DONE)


def last_line(log: Path) -> str:
    return tail(log, 1).strip()[:200]


def tail(log: Path, count: int = 30) -> str:
    """Return the last lines of a log that are not empty; "" if there is no log."""
    if not log.is_file():
        return ""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return "\n".join(lines[-count:])


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the summary: part, status, seconds, files, reason."""
    rows = [("part", "status", "seconds", "files", "reason")]
    rows += [(o.part, o.status, f"{o.seconds:.0f}", str(len(o.files)), o.reason) for o in outcomes]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]).rstrip()
        for row in rows
    )
