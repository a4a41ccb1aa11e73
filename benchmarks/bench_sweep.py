"""Trials per hour of a sweep: students in groups against one trial at a time and one process each.

    python -m benchmarks.bench_sweep [--students 1 2 4 8 16] [--steps 30] [--repeats 3] [--cores 2]

The recipe is digits with a heavy share of loading and teacher: Pillow views with full RandAugment, and a ResNet-56
teacher at the student's input size. The shares are measured and stand in every row. Providers:

    one_at_a_time   one process, all cores, one trial after another
    process_each    a process and a core per trial, as many at a time as there are cores
    group           one process, all cores, K students on one batch and one teacher pass
    groups          a process per core, each with K / cores students (what `--workers` does)

Start-up, compilation and warm-up are outside the clock. A trial is one run of the recipe's full length; its time is
that of its steps. On a machine that others use too, cpu_s_per_trial is the figure that compares.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import datetime
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from lgfast.build import Loaders, build_loaders, load_splits
from lgfast.config import Config, load_recipe, replace
from lgfast.data import Batch
from lgfast.environment import describe_environment
from lgfast.interrupt import InterruptFlag
from lgfast.sweep.group import SharedTeacher, Student
from lgfast.sweep.probe import untrained_teacher

WARMUP_STEPS = 3
RECIPE = {
    "augment.image_size": 32,
    "augment.teacher_size": 32,
    "augment.rand_augment": "rand-m9-mstd0.5-inc1",
    "augment.flip_prob": 0.5,
    "augment.erase_prob": 0.25,
    "model.patch_size": 4,
    "teacher.recipe": "cifar100-resnet56",
    "data.seed": 0,
    "data.loader": "timm",
    "log.tensorboard": False,
    "log.every_steps": 10**9,
    "device": "cpu",
}


def configs(students: int, folder: Path) -> list[Config]:
    """Trials that differ in learning rate, guidance weight and seed."""
    base = replace(load_recipe("digits"), RECIPE)
    return [
        replace(
            base,
            {
                "optim.lr": 1e-3 * (1 + number % 4),
                "guidance.weight": 1.0 + number // 4,
                "seed": number,
                "run_dir": str(folder / str(number)),
            },
        )
        for number in range(students)
    ]


class Group:
    """K students ready to step, as a worker of a sweep has them; the teacher is untrained, which costs the same."""

    def __init__(self, students: int, folder: Path) -> None:
        trials, device = configs(students, folder), torch.device("cpu")
        splits = load_splits(trials[0])
        torch.manual_seed(0)
        self.teacher = SharedTeacher(untrained_teacher(trials[0], splits, device))
        self.loaders: Loaders = build_loaders(trials[0], splits, device)
        self.students = [
            Student(trial).build(splits, self.teacher, device, InterruptFlag(), self.loaders) for trial in trials
        ]
        self.steps_per_trial = trials[0].epochs * len(self.loaders.train)
        self.batches = self.endless()

    def endless(self) -> Iterator[Batch]:
        epoch = 0
        while True:
            self.loaders.train.set_epoch(epoch)
            for student in self.students:
                student.trainer.begin_epoch()
            yield from self.loaders.train
            epoch += 1

    def run(self, steps: int) -> None:
        for _ in range(steps):
            batch = next(self.batches)
            self.teacher.prepare(batch)
            for student in self.students:
                with student.acting():
                    student.trainer.step(batch)

    def digest(self) -> str:
        """Of the first student's weights."""
        state = self.students[0].trainer.student.model.state_dict()
        return hashlib.sha256(b"".join(state[name].numpy().tobytes() for name in sorted(state))).hexdigest()[:12]

    def shares(self, steps: int) -> dict[str, float]:
        """CPU seconds of loading, teacher and one student, per step."""
        cpu = {"loading_s": 0.0, "teacher_s": 0.0, "student_s": 0.0}
        for _ in range(steps):
            marks = [time.process_time()]
            batch = next(self.batches)
            marks.append(time.process_time())
            self.teacher.prepare(batch)
            marks.append(time.process_time())
            self.students[0].trainer.step(batch)
            marks.append(time.process_time())
            for name, begin, end in zip(cpu, marks, marks[1:], strict=False):
                cpu[name] += (end - begin) / steps
        return cpu


def child(students: int, steps: int, threads: int, want_shares: bool) -> None:
    """Set up, say so, wait for the word, run, report."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        group = Group(students, Path(folder))
        group.run(WARMUP_STEPS)
        print("ready", flush=True)
        sys.stdin.readline()
        started, cpu = time.perf_counter(), time.process_time()
        group.run(steps)
        row = {
            "wall_s": (time.perf_counter() - started) / steps,
            "cpu_s": (time.process_time() - cpu) / steps,
            "digest": group.digest(),
            "steps_per_trial": group.steps_per_trial,
        }
        if want_shares:
            row |= group.shares(steps)
        print(json.dumps(row), flush=True)


def measure(students: list[int], steps: int, threads: int, want_shares: bool = False) -> list[dict]:
    """One child for each number of students, all running at the same time."""
    base = [sys.executable, "-m", "benchmarks.bench_sweep", "--steps", str(steps), "--threads", str(threads)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    children = [
        subprocess.Popen(
            [*base, "--child", str(count), *(["--shares"] if want_shares else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for count in students
    ]
    for process in children:
        if process.stdout.readline().strip() != "ready":
            raise RuntimeError("a measured process ended before it was ready; see its message above")
    for process in children:
        process.stdin.write("go\n")
        process.stdin.flush()
    return [json.loads(process.communicate()[0]) for process in children]


def providers(students: int, cores: int) -> dict[str, tuple[list[int], int]]:
    """Per provider the students of each process, and its threads."""
    found = {"group": ([students], cores)}
    if students == 1:
        found |= {"one_at_a_time": ([1], cores), "process_each": ([1] * cores, 1)}
        del found["group"]
    elif students >= cores > 1:
        found["groups"] = ([students // cores] * cores, 1)
    return found


@dataclasses.dataclass
class Sample:
    """One measurement of a provider."""

    trials: int
    step_s: float  # wall seconds until every trial has done a step
    cpu_s: float  # CPU seconds of a step of one trial
    digest: str

    @classmethod
    def of(cls, students: list[int], children: list[dict]) -> Sample:
        trials = sum(students)
        cpu_s = sum(row["cpu_s"] for row in children) / trials
        return cls(trials, max(row["wall_s"] for row in children), cpu_s, children[0]["digest"])


def rows(options: argparse.Namespace) -> list[dict]:
    shares = measure([1], options.steps, 1, want_shares=True)[0]
    step = shares["loading_s"] + shares["teacher_s"] + shares["student_s"]
    shown = {f"{part}_share": round(shares[f"{part}_s"] / step, 3) for part in ("loading", "teacher", "student")}
    plans = {(name, k): plan for k in options.students for name, plan in providers(k, options.cores).items()}
    samples: dict[tuple[str, int], list[Sample]] = {key: [] for key in plans}
    for _ in range(options.repeats):  # interleaved, so that a busy minute does not fall on one provider
        for key, (students, threads) in plans.items():
            samples[key].append(Sample.of(students, measure(students, options.steps, threads)))
    environment = describe_environment()
    alone = {key[0]: samples[key][0].digest for key in samples if key[1] == 1}
    found = []
    for (name, students), taken in samples.items():
        # same number of threads, so the same order of sums: the first student must have the same bits as alone
        expected = alone.get("process_each" if name in ("groups", "process_each") else "one_at_a_time")
        rates = [3600 * sample.trials / (sample.step_s * shares["steps_per_trial"]) for sample in taken]
        found.append(
            {
                "provider": name,
                "students": students,
                "cores": options.cores,
                "trials_per_hour": round(statistics.median(rates), 1),
                "trials_per_hour_min": round(min(rates), 1),
                "trials_per_hour_max": round(max(rates), 1),
                "cpu_s_per_trial": round(statistics.median(s.cpu_s for s in taken) * shares["steps_per_trial"], 2),
                "same_bits_as_alone": expected is None or all(sample.digest == expected for sample in taken),
                **shown,
                "steps_per_trial": shares["steps_per_trial"],
                "steps_measured": options.steps,
                "repeats": options.repeats,
                "load_average": round(os.getloadavg()[0], 1),
                "cpu": cpu_name(),
                "torch": environment["torch"],
                "commit": environment["commit"],
                "date": datetime.date.today().isoformat(),
            }
        )
    return found


def cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--shares", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child:
        child(options.child, options.steps, options.threads, options.shares)
        return 0
    table = rows(options)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{table[0]['date']}_cpu_sweep.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    for row in table:
        print({name: row[name] for name in list(row)[:11]})
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
