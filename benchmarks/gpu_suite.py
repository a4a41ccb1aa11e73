"""The one command for a machine with a GPU: builds, runs the GPU tests, measures every row with its peers, trains.

    python benchmarks/gpu_suite.py [--only build,tests,attention,...] [--minutes 8] [--out runs/gpu-suite] [--slot 9]

Needs a CUDA PyTorch image and what it names as missing. Called again with the same --out it goes on where it stopped.
Exit code: 0 everything is done or skipped, 1 a command failed or met its limit without getting further, 2 wrong
arguments, 3 unfinished: call again. benchmarks/README.md says more. `--dry-run` runs every part on the CPU, tiny.
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

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # in place of benchmarks/

from benchmarks.suite import preflight, runner  # noqa: E402
from benchmarks.suite.build import is_built, source_digest  # noqa: E402
from benchmarks.suite.parts import DRY, GPU, NAMES, Command, selected  # noqa: E402


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = options.add_argument
    add("--only", default="", metavar="PARTS", help=f"of {', '.join(NAMES)}; default: all")
    add("--minutes", type=float, default=8, help="time limit of a part, for this call")
    add("--slot", type=float, default=0, help="minutes of this call altogether; 0: no limit")
    add("--out", type=Path, default=ROOT / "runs" / "gpu-suite", help="folder of state, logs, runs and results")
    add("--data", type=Path, default=ROOT / "data", help="folder that holds cifar-100-python, for the part train")
    add("--wheels", type=Path, nargs="+", default=[], help="wheels, or folders of them, to install beside the image's")
    add("--profile", action="store_true", help="also trace one step and list its kernels")
    add("--again", action="store_true", help="repeat the parts that are finished")
    add("--dry-run", action="store_true", help="everything on the CPU with tiny shapes")
    return options


class Suite:
    """One call of the suite."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.out = options, options.out.resolve()
        self.table = DRY if options.dry_run else GPU
        self.names = [name for name in selected(options.only, options.profile) if name in self.table]
        self.out.mkdir(parents=True, exist_ok=True)
        self.site = self.out / "site"
        preflight.install_wheels(preflight.wheel_files(options.wheels), self.site)
        sys.path.insert(0, str(self.site))
        limit_s = options.minutes * 60
        self.runner = runner.Runner(self.out, self.execute, self.places, self.missing, limit_s, source_digest())
        if options.again:
            for name in self.names:
                self.runner.state.forget(name)
        self.runner.state.forget("build")  # compiles what changed

    def is_built(self) -> bool:
        return is_built(with_cuda=not self.options.dry_run)

    def execute(self, command: Command, arguments: list[str], limit_s: float, log: Path) -> runner.Record:
        if self.options.dry_run and not command.needs_process:
            return runner.run_here(command, arguments, limit_s, log)
        # the data sets may lie where nothing can be written
        variables = {"LGFAST_CACHE": os.environ.get("LGFAST_CACHE", str(self.out / "cache"))}
        return runner.run_process(command, arguments, limit_s, log, (ROOT, self.site), variables)

    def places(self) -> dict[str, object]:
        results = self.out / "results"
        ceilings = max(results.glob("*_ceilings*.csv"), key=lambda path: path.stat().st_mtime_ns, default=None)
        data = self.options.data.resolve()
        return {"out": self.out, "results": results, "ceilings": ceilings, "data": data}

    @property
    def has_data(self) -> bool:
        return (self.options.data / "cifar-100-python" / "train").is_file()

    def missing(self, command: Command) -> list[str]:
        return preflight.missing(command, self.has_data, check_only=self.options.dry_run and "--check" in command.text)

    def run(self) -> list[runner.Outcome]:
        started, outcomes = time.monotonic(), []
        for name in self.names:
            left_s = math.inf
            if self.options.slot:
                left_s = self.options.slot * 60 - runner.GRACE_S - (time.monotonic() - started)
            outcome = self.runner.run(name, self.table[name], left_s)
            print(f"{name}: {outcome.status}, {outcome.seconds:.0f} s {outcome.reason}", flush=True)
            if outcome.status == runner.FAILED:
                print(runner.tail(self.out / "logs" / f"{name}.log"), flush=True)
            outcomes.append(outcome)
            if name == "build" and not self.is_built():
                print("the other parts need what was not built", flush=True)
                break
        return outcomes


def exit_code(outcomes: Sequence[runner.Outcome]) -> int:
    if any(outcome.is_unfinished for outcome in outcomes):
        return 3
    return 1 if {outcome.status for outcome in outcomes} & {runner.FAILED, runner.OVER_TIME} else 0


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    try:
        suite = Suite(options)
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not options.dry_run and (reason := no_gpu()):
        print(f"error: {reason}; --dry-run runs every part on the CPU", file=sys.stderr)
        return 2
    for line in preflight.report({name: suite.table[name] for name in suite.names}, suite.missing):
        print(line)
    outcomes = suite.run()
    text = runner.table(outcomes)
    (suite.out / "summary.txt").write_text(text + "\n")
    print(f"\n{text}\n\nrows, tables and curves: {suite.out / 'results'}; output of the parts: {suite.out / 'logs'}")
    return exit_code(outcomes)


def no_gpu() -> str:
    """Why nothing can be measured on a GPU here, or nothing."""
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
        sys.exit(main())
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        sys.exit(130)
