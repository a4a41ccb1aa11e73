"""Compare the loop and the sweep of two checkouts, such as the commits before and after a change.

    python benchmarks/before_after.py BEFORE AFTER [--pairs 15] [--steps 20]

BEFORE and AFTER are folders of checkouts with their libraries built. Each runs in a process of its own, on one thread.
The two take turns, so that a busy moment of the machine slows both alike. Two subjects are timed:

    loop    a guided step of the digits student through the training loop, 32 images
    sweep   a step of four digits students that share batches and teacher

A row is a pair of turns, in milliseconds a step. cpu_ms is processor time, which other work on the machine disturbs
less than the time that passes. The last lines are the medians of after / before over the pairs, with the quartiles.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUBJECTS = ("loop", "sweep")
STUDENTS = 4


def make_calls(folder: Path) -> dict[str, Callable[[int], None]]:
    """Build the subjects from the checkout of this process; each is a function that runs the given number of steps."""
    import torch

    from benchmarks.step_calls import make_alone
    from benchmarks.sweep_trials import Group, trial_configs
    from lgfast.config import replace

    step = make_alone("loop", ("digits", 32, True, torch.device("cpu")), "fp32")
    configs = [replace(config, {"precision": "fp32"}) for config in trial_configs("digits", STUDENTS, "cpu", folder)]
    group = Group(configs, is_shared=True)
    return {"loop": lambda steps: [step() for _ in range(steps)] and None, "sweep": group.run}


def serve() -> None:
    """Answer each line `SUBJECT STEPS` with milliseconds a step: of processor time, and of time that passed."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        calls = make_calls(Path(folder))
        for call in calls.values():
            call(5)  # warm-up
        print("ready", flush=True)
        for line in sys.stdin:
            subject, steps = line.split()
            cpu, wall = time.process_time(), time.perf_counter()
            calls[subject](int(steps))
            used = (time.process_time() - cpu, time.perf_counter() - wall)
            print(*(1e3 * seconds / int(steps) for seconds in used), flush=True)


class Checkout:
    """A process that serves the code of one checkout."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve"],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(folder.resolve()), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.commit = subprocess.run(
            ["git", "-C", folder, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        while self.read().strip() != "ready":
            pass

    def read(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("error: a measured process ended; see its message above")
        return line

    def measure(self, subject: str, steps: int) -> tuple[float, float]:
        self.process.stdin.write(f"{subject} {steps}\n")
        self.process.stdin.flush()
        cpu_ms, wall_ms = map(float, self.read().split())
        return cpu_ms, wall_ms


def measure_pairs(folders: Sequence[Path], pairs: int, steps: int) -> Iterator[dict]:
    """Yield a row for each pair and subject; the checkouts take turns at going first."""
    checkouts = [Checkout(folder) for folder in folders]
    for pair in range(pairs):
        for subject in SUBJECTS:
            count = steps if subject == "loop" else -(-steps // STUDENTS)
            order = checkouts if pair % 2 == 0 else checkouts[::-1]
            found = {checkout: checkout.measure(subject, count) for checkout in order}
            (before_cpu, before), (after_cpu, after) = (found[checkout] for checkout in checkouts)
            yield {
                "op": "before_after",
                "provider": subject,
                "pair": pair,
                "before": checkouts[0].commit,
                "after": checkouts[1].commit,
                "before_cpu_ms": before_cpu,
                "after_cpu_ms": after_cpu,
                "before_ms": before,
                "after_ms": after,
            }


def summary(rows: Sequence[dict], subject: str, column: str) -> str:
    ratios = [row[f"after_{column}"] / row[f"before_{column}"] for row in rows if row["provider"] == subject]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{subject} {column}: after / before {middle:.3f}, quartiles {low:.3f} to {high:.3f}, {len(ratios)} pairs"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs=2, type=Path, metavar="FOLDER", help="before, then after")
    parser.add_argument("--pairs", type=int, default=15, help="default 15")
    parser.add_argument("--steps", type=int, default=20, help="steps of the loop in a turn; default 20")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the CSV")
    options = parser.parse_args(argv)
    import torch

    from benchmarks import row_file

    torch.set_num_threads(1)  # the rows show it
    file = row_file.RowFile("before_after", torch.device("cpu"), options.out)
    for row in measure_pairs(options.checkouts, options.pairs, options.steps):
        file.add(row)
        print(*(f"{value:.1f}" if isinstance(value, float) else value for value in row.values()), flush=True)
    for subject in SUBJECTS:
        print(summary(file.rows, subject, "cpu_ms"), summary(file.rows, subject, "ms"), sep="\n")
    print(file.path)
    return 0


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        del sys.path[0]  # benchmarks/ of this checkout; PYTHONPATH names the one to measure
        serve()
    else:
        sys.path[0] = str(ROOT)
        sys.exit(main())
