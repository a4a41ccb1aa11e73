"""Look for wrong uses of memory in single kernels on small shapes, with NVIDIA's compute-sanitizer.

    python -m benchmarks.sanitizer [--kernels augment,feature_mse] [--tools memcheck,racecheck] [--seconds 60]

memcheck finds accesses outside of allocated memory, racecheck uses of shared memory that no barrier orders. Exit codes:
0, nothing was found; 1, something was found, or a program did not end.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.kernels.table import KERNELS
from benchmarks.suite.preflight import program

ROOT = Path(__file__).resolve().parents[1]
FOUND = 9  # exit code that compute-sanitizer is told to give
WORKERS = max(1, (os.cpu_count() or 1) // 3)


def command(tool: str, name: str) -> list[str]:
    sanitizer = [program("compute-sanitizer"), "--tool", tool, "--error-exitcode", str(FOUND), "--print-limit", "5"]
    return [*sanitizer, sys.executable, "-m", "benchmarks.kernels.once", name, "--shape", "small"]


def run(tool: str, name: str, seconds: float) -> tuple[bool, str]:
    """Check one kernel with one tool; return whether nothing was found, and the tool's words."""
    # PyTorch's allocator would take memory in large pieces, and inside a piece nothing is out of bounds
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        done = subprocess.run(
            command(tool, name), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return False, f"{name} {tool}: not finished after {seconds:.0f} s"
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("=========")]
    verdict = "nothing found" if done.returncode == 0 else f"exit code {done.returncode}"
    return done.returncode == 0, "\n".join([f"{name} {tool}: {verdict}", *(said[:40] if done.returncode else [])])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernels", default=",".join(KERNELS), help="comma-separated; default: all")
    parser.add_argument("--tools", default="memcheck,racecheck", help="comma-separated; default memcheck,racecheck")
    parser.add_argument("--seconds", type=float, default=60, help="time limit of one kernel under one tool")
    options = parser.parse_args(argv)
    pairs = [(tool, name) for name in options.kernels.split(",") for tool in options.tools.split(",")]
    with ThreadPoolExecutor(WORKERS) as pool:
        results = list(pool.map(lambda pair: run(*pair, options.seconds), pairs))
    for _, text in sorted(results, reverse=True):  # findings come last
        print(text, flush=True)
    return int(not all(is_clean for is_clean, _ in results))


if __name__ == "__main__":
    sys.exit(main())
