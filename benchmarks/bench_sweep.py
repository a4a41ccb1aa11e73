"""Time the trials of a sweep: students in groups against one trial at a time and one process each.

    python -m benchmarks.bench_sweep [--recipe heavy] [--students 1,2,4,8,16] [--device cpu|cuda]

Recipes, all on scikit-learn's digits:

    heavy    the digits student with a heavy share of loading and teacher: Pillow views of 32x32 with RandAugment,
             and a ResNet-56 teacher of the same input (the default on CPU)
    digits   the digits recipe as it is
    deit-ti  DeiT-Ti at 224x224, ResNet-56 teacher at 32x32, batch 128, the paper's views (the default on CUDA)

Providers:

    one_at_a_time   one process, one trial after another
    process_each    trials in processes of their own, at the same time: a core each, or up to four on one GPU
    group           one process, K students that share each batch and one run of the teacher
    groups          a process per core, each with K / cores students (CPU; what `--workers` does)

Every row states the shares of loading, teacher and student in a step of one trial, and whether the first student ended
the warm-up with the same bits as alone. The clock does not count start-up, compilation and warm-up: a trial's time is
that of its steps. On a machine that others use too, compare cpu_s_per_trial.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import harness, row_file
from benchmarks.sweep_trials import RECIPES, Group, trial_configs
from lgfast.step import graph

WARMUP_STEPS = graph.WARMUP_STEPS + 2  # the last ones replay the graph
MIN_STEPS = 4
PROCESSES_PER_GPU = 4


def say_ready_and_wait() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


def child(options: argparse.Namespace, wait: Callable[[], None]) -> dict[str, float | str]:
    """Set up the trials, wait for the other processes, run, and return the times."""
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        configs = trial_configs(options.recipe, options.child, options.device, Path(folder))
        group = Group(configs, is_shared=options.child > 1 or options.shares)
        group.run(WARMUP_STEPS)
        digest = group.digest()
        wait()
        if options.shares:
            return group.shares(options.steps)
        started, cpu = time.perf_counter(), time.process_time()
        group.run(options.steps)
        return {
            "wall_s": (time.perf_counter() - started) / options.steps,
            "cpu_s": (time.process_time() - cpu) / options.steps,
            "digest": digest,
            "steps_per_trial": group.steps_per_trial,
        }


@dataclass(frozen=True)
class Launch:
    """Processes that run at the same time: the students of each, and the threads that each may use."""

    students: tuple[int, ...]
    threads: int

    def measure(self, options: argparse.Namespace, shares: bool = False) -> list[dict]:
        """Start the processes, let them set up, run them at the same time, and return their reports."""
        if options.here and len(self.students) == 1:
            own = {"child": self.students[0], "threads": self.threads, "shares": shares}
            own["steps"] = self.steps(options.steps)
            return [child(argparse.Namespace(**vars(options) | own), wait=lambda: None)]
        command = [sys.executable, "-m", "benchmarks.bench_sweep", "--recipe", options.recipe]
        command += ["--device", options.device, "--threads", str(self.threads), *(["--shares"] if shares else [])]
        children = [
            subprocess.Popen(
                [*command, "--child", str(count), "--steps", str(self.steps(options.steps))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": str(self.threads)},
            )
            for count in self.students
        ]
        for process in children:
            if process.stdout.readline().strip() != "ready":
                for other in children:
                    other.kill()
                raise ChildProcessError("a measured process ended before it was ready; see its message above")
        for process in children:
            process.stdin.write("go\n")
            process.stdin.flush()
        reports = [process.communicate()[0] for process in children]
        if any(process.returncode for process in children):
            raise ChildProcessError("a measured process failed; see its message above")
        return [json.loads(report) for report in reports]

    def steps(self, steps: int) -> int:
        """Return fewer steps for more students, so that all measurements take about equally long."""
        return max(min(steps, MIN_STEPS), math.ceil(steps / max(self.students)))


def launches(students: Sequence[int], cores: int, device: str) -> dict[tuple[str, int], Launch]:
    """Return what to measure, by provider and number of students; one trial at a time comes first."""
    found = {("one_at_a_time", 1): Launch((1,), cores)}
    if device == "cpu" and cores > 1:
        found["process_each", cores] = Launch((1,) * cores, 1)
    for count in students:
        if count > 1:
            found["group", count] = Launch((count,), cores)
        if device == "cuda" and 1 < count <= PROCESSES_PER_GPU:
            found["process_each", count] = Launch((1,) * count, max(1, cores // count))
        if device == "cpu" and cores > 1 and count >= 2 * cores:
            found["groups", count] = Launch((count // cores,) * cores, 1)
    return found


def rows(options: argparse.Namespace) -> Iterator[dict]:
    plans = launches(options.students, options.cores, options.device)
    shares = Launch((1,), options.cores).measure(options, shares=True)[0]
    samples: dict[tuple[str, int], list[list[dict]]] = {key: [] for key in plans}
    for _ in range(options.repeats):  # interleaved, so that a busy minute does not fall on one provider
        for key, plan in plans.items():
            try:
                samples[key].append(plan.measure(options))
            except ChildProcessError as error:  # such as too many students for the memory; go on with the others
                print(f"{key[0]} of {key[1]}: {error}", file=sys.stderr)
    samples = {key: taken for key, taken in samples.items() if taken}
    alone = {
        plans[key].threads: taken[0][0]["digest"] for key, taken in samples.items() if set(plans[key].students) == {1}
    }
    for key, taken in samples.items():
        plan = plans[key]
        trials, steps = sum(plan.students), taken[0][0]["steps_per_trial"]
        rates = [3600 * trials / (steps * max(one["wall_s"] for one in sample)) for sample in taken]
        cpu_s = [steps * sum(one["cpu_s"] for one in sample) / trials for sample in taken]
        # the order of sums depends on the number of threads, so only equal numbers can have equal bits
        same = all(one["digest"] == alone.get(plan.threads) for sample in taken for one in sample)
        yield {
            "op": "sweep",
            "provider": key[0],
            "shape": f"{options.recipe} B={load_batch_size(options)}",
            "students": trials,
            "processes": len(plan.students),
            "trials_per_hour": statistics.median(rates),
            "trials_per_hour_min": min(rates),
            "trials_per_hour_max": max(rates),
            "cpu_s_per_trial": statistics.median(cpu_s),
            "same_bits_as_alone": same if plan.threads in alone else None,
            **shares,
            "steps_per_trial": steps,
            "steps_measured": plan.steps(options.steps),
            "repeats": options.repeats,
            "load_average": os.getloadavg()[0],
        }


def load_batch_size(options: argparse.Namespace) -> int:
    return trial_configs(options.recipe, 1, options.device, Path())[0].data.batch_size


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=tuple(RECIPES), help="default: heavy on CPU, deit-ti on CUDA")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: cuda where torch sees one"
    )
    numbers = "1,2,4,8,16"
    parser.add_argument(
        "--students", type=harness.counts, default=numbers, help=f"trials at a time, comma-separated; default {numbers}"
    )
    parser.add_argument(
        "--steps", type=harness.count, help="steps of one trial alone; a group of K takes a K-th of them"
    )
    parser.add_argument("--repeats", type=harness.count, default=2, help="measurements of each figure; default 2")
    parser.add_argument("--cores", type=harness.count, default=2, help="cores that the trials may use; default 2")
    parser.add_argument(
        "--out", type=Path, default=row_file.RESULTS, help="folder of the CSV; default benchmarks/results"
    )
    parser.add_argument(
        "--here", action="store_true", help="run a process that runs alone in this one, which starts faster"
    )
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--shares", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    is_cuda = options.device == "cuda"
    options.recipe = options.recipe or ("deit-ti" if is_cuda else "heavy")
    options.steps = options.steps or (200 if is_cuda else 16)
    if options.child:
        print(json.dumps(child(options, say_ready_and_wait)), flush=True)
        return 0
    torch.set_num_threads(options.cores)  # the rows show it
    device = harness.chosen_device(options)
    found = list(rows(options))
    path = row_file.write_rows("sweep", found, device, options.out)
    for row in found:
        shown = ("provider", "students", "trials_per_hour", "cpu_s_per_trial", "same_bits_as_alone")
        print(
            "  ".join(f"{name} {row[name]:.4g}" if isinstance(row[name], float) else str(row[name]) for name in shown)
        )
    print(", ".join(f"{name} {found[0][name]:.0%}" for name in found[0] if name.endswith("_share")))
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
