"""Build, run the GPU tests, measure every row with its peers, and train on a machine with a GPU.

    python benchmarks/gpu_suite.py [--only build,tests,attention,...] [--minutes 8] [--out runs/gpu-suite] [--slot 9]

    python benchmarks/gpu_suite.py --lease 7 [--continue] [--pack FOLDER]     # a short time on a GPU

It needs a CUDA image of PyTorch, and it names what else is missing. Called again with the same --out, it goes on where
it stopped. `--dry-run` runs every part on the CPU with tiny shapes. benchmarks/README.md says more.

Exit codes: 0, everything is done or skipped; 1, a command failed or met its limit without getting further, or nothing
could run; 2, wrong arguments; 3, unfinished: call again.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

STARTED = time.monotonic()  # before the imports that take long
ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # in place of benchmarks/

from benchmarks.suite import lease, preflight, runner  # noqa: E402
from benchmarks.suite.build import is_built, source_digest  # noqa: E402
from benchmarks.suite.pack import pack  # noqa: E402
from benchmarks.suite.parts import DRY, GPU, NAMES, Command, chosen, selected  # noqa: E402

LEASE_GRACE_S = 8.0  # between asking a process to stop and ending it, in a lease


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = options.add_argument
    add("--only", default="", metavar="PARTS", help=f"of {', '.join(NAMES)}; default: all")
    add("--minutes", type=float, default=8, help="time limit of a part, for this call")
    add("--slot", type=float, default=0, help="time limit of the whole call; 0: none")
    add("--out", type=Path, default=ROOT / "runs" / "gpu-suite", help="folder of state, logs, runs and results")
    add("--data", type=Path, default=ROOT / "data", help="folder that holds cifar-100-python, for the part train")
    add("--wheels", type=Path, nargs="+", default=[], help="wheels, or folders of them, to install beside the image's")
    add("--profile", action="store_true", help="also trace one step and list its kernels")
    add("--again", action="store_true", help="repeat the parts that are finished")
    add("--dry-run", action="store_true", help="everything on the CPU with tiny shapes")
    add(
        "--lease",
        type=float,
        default=0,
        metavar="MINUTES",
        help="a short time on a GPU, the most important parts first",
    )
    add("--continue", dest="goes_on", action="store_true", help="with --lease: the parts of its second call")
    pack_folder = os.environ.get("LGFAST_PACK")
    add("--pack", type=Path, default=pack_folder, help="folder of archives, written after every part; $LGFAST_PACK")
    add("--table", default="benchmarks.kernels.table", help="module that lists the kernels; rehearsals have their own")
    return options


def parts_of(options: argparse.Namespace) -> dict[str, list[Command]]:
    """Return the parts to run, in order.

    Raises:
        ValueError: options do not fit together, or a part is unknown.
    """
    if options.goes_on and not options.lease:
        raise ValueError("--continue goes on with a lease: give --lease MINUTES too")
    if not options.lease:
        table = DRY if options.dry_run else GPU
        return {name: table[name] for name in selected(options.only, options.profile) if name in table}
    first, second = (lease.DRY_FIRST, lease.DRY_SECOND) if options.dry_run else (lease.FIRST, lease.SECOND)
    table = second if options.goes_on else first
    wanted = chosen(options.only, table) if options.only else set(table)
    return {name: commands for name, commands in table.items() if name in wanted}


class Suite:
    """One call of the suite."""

    def __init__(self, options: argparse.Namespace, started: float) -> None:
        self.options, self.out, self.started = options, options.out.resolve(), started
        self.parts = parts_of(options)
        self.minutes = options.lease or options.slot  # of the call; 0: no limit
        self.grace_s = LEASE_GRACE_S if options.lease else runner.GRACE_S
        self.out.mkdir(parents=True, exist_ok=True)
        self.site = self.out / "site"
        preflight.install_wheels(preflight.wheel_files(options.wheels), self.site)
        sys.path.insert(0, str(self.site))
        limit_s = (options.lease or options.minutes) * 60
        self.runner = runner.Runner(self.out, self.execute, self.places, self.missing, limit_s, source_digest())
        if options.again:
            for name in self.parts:
                self.runner.state.forget(name)
        self.runner.state.forget("build")  # it compiles what changed

    def is_built(self) -> bool:
        return is_built(with_cuda=not self.options.dry_run)

    def execute(self, command: Command, arguments: list[str], limit_s: float, log: Path) -> runner.Record:
        if self.options.dry_run and not command.needs_process:
            return runner.run_here(command, arguments, limit_s, log)
        paths = (ROOT, self.site)
        return runner.run_process(command, arguments, limit_s, log, paths, self.variables(), self.grace_s)

    def variables(self) -> dict[str, str]:
        """Return variables of a command's environment: a folder for caches, and the kernels to go on without.

        The caches need a folder of their own, since that of the data sets may be read-only.
        """
        switches = self.places()["switches"]
        found = switches.read_text() if switches.is_file() else ""
        off = dict.fromkeys(filter(None, f"{os.environ.get('LGFAST_DISABLE', '')},{found}".split(",")))
        cache = os.environ.get("LGFAST_CACHE", str(self.out / "cache"))
        return {"LGFAST_CACHE": cache, "LGFAST_DISABLE": ",".join(off)}

    def places(self) -> dict[str, object]:
        results = self.out / "results"
        ceilings = max(results.glob("*_ceilings*.csv"), key=lambda path: path.stat().st_mtime_ns, default=None)
        places = {"out": self.out, "results": results, "ceilings": ceilings, "data": self.options.data.resolve()}
        files = {"switches": self.out / "switches.txt", "stamp": self.out / "native.txt"}
        return places | files | {"table": self.options.table}

    @property
    def has_data(self) -> bool:
        return (self.options.data / "cifar-100-python" / "train").is_file()

    def missing(self, command: Command) -> list[str]:
        return preflight.missing(command, self.has_data, check_only=self.options.dry_run and "--check" in command.text)

    def run(self) -> list[runner.Outcome]:
        outcomes: list[runner.Outcome] = []
        for name, commands in self.parts.items():
            left_s = math.inf
            if self.minutes:
                left_s = self.minutes * 60 - self.grace_s - (time.monotonic() - self.started)
            outcome = self.runner.run(name, commands, left_s)
            print(f"{name}: {outcome.status}, {outcome.seconds:.0f} s {outcome.reason}", flush=True)
            if outcome.status == runner.FAILED or self.options.lease:
                print(runner.tail(self.out / "logs" / f"{name}.log"), flush=True)
            outcomes.append(outcome)
            self.keep(outcomes)
            if name == "build" and not self.is_built():
                print("the other parts need the libraries, which were not built", flush=True)
                break
        return outcomes

    def keep(self, outcomes: Sequence[runner.Outcome]) -> None:
        """Write the summary so far, and the archives if they are wanted."""
        (self.out / "summary.txt").write_text(runner.table(outcomes) + "\n")
        if self.options.pack:
            pack(self.out, self.options.pack)


def exit_code(outcomes: Sequence[runner.Outcome]) -> int:
    if any(outcome.is_unfinished for outcome in outcomes):
        return 3
    statuses = {outcome.status for outcome in outcomes}
    return 1 if statuses & {runner.FAILED, runner.OVER_TIME} or nothing_ran(outcomes) else 0


def nothing_ran(outcomes: Sequence[runner.Outcome]) -> bool:
    return {outcome.status for outcome in outcomes} == {runner.SKIPPED}


def main(argv: Sequence[str] | None = None, started: float | None = None) -> int:
    options = parser().parse_args(argv)
    try:
        suite = Suite(options, time.monotonic() if started is None else started)
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not options.dry_run and (reason := no_gpu()):
        print(f"error: {reason}; --dry-run runs every part on the CPU", file=sys.stderr)
        return 2
    for line in preflight.report(suite.parts, suite.missing):
        print(line)
    outcomes = suite.run()
    text = runner.table(outcomes)
    print(f"\n{text}\n\nrows, tables and curves: {suite.out / 'results'}; output of the parts: {suite.out / 'logs'}")
    if nothing_ran(outcomes):
        way_out = "install it, or take the .venv/bin/python that `make build` sets up"
        print(f"error: {sys.executable} lacks what every part needs (above); {way_out}", file=sys.stderr)
    return exit_code(outcomes)


def no_gpu() -> str:
    """Return why nothing can be measured on a GPU here, or ""."""
    try:
        import torch
    except ImportError as error:
        return f"torch cannot be imported ({error})"
    return "" if torch.cuda.is_available() else "torch finds no CUDA device"


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupted)
    try:
        sys.exit(main(started=STARTED))
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        sys.exit(130)
