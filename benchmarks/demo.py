"""Base against guided on digits over several seeds: a table (mean and spread) and the curves as a PNG.

    python -m benchmarks.demo [--seeds 0 1 2] [--out runs/demo]

Each run is a process with one thread, as many at a time as there are cores. Finished runs are kept, so a second call
goes on where the first was stopped.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from lgfast.config import Config, load_recipe, replace
from lgfast.run import Result, read_result, train_run

RECIPES = {"base": "digits-base", "guided": "digits"}


def demo_config(variant: str, seed: int, out: Path) -> Config:
    changes = {"seed": seed, "run_dir": str(out / f"{variant}-seed{seed}"), "name": f"{variant} seed {seed}"}
    return replace(load_recipe(RECIPES[variant]), changes)


def run_one(config: Config) -> Result:
    torch.set_num_threads(1)
    return read_result(config.run_dir) or train_run(config, resume=True)


def run_all(configs: list[Config], workers: int) -> dict[str, Result]:
    """Results by run folder. The teacher is trained by whichever guided run comes first; the others wait for it."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = {pool.submit(run_one, config): config for config in configs}
        return {futures[done].run_dir: done.result() for done in as_completed(futures)}


def spread(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):5.2f} ± {deviation:4.2f}"


def table(results: dict[str, list[Result]]) -> str:
    """Markdown table of test accuracy, mean and standard deviation over the seeds."""
    lines = [
        "| student | test accuracy, selected epoch (%) | test accuracy, last epoch (%) | seeds |",
        "|---|---|---|---|",
    ]
    for variant, runs in results.items():
        best, last = [r.test_top1 for r in runs], [r.last_test_top1 for r in runs]
        lines.append(f"| {variant} | {spread(best)} | {spread(last)} | {len(runs)} |")
    return "\n".join(lines)


def read_curve(run_dir: str) -> tuple[list[int], list[float]]:
    """Epochs and validation accuracy of a run."""
    with (Path(run_dir) / "summary.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["val_top1"]]
    return [int(row["epoch"]) for row in rows], [float(row["val_top1"]) for row in rows]


def plot(results: dict[str, list[Result]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for color, (variant, runs) in zip(("tab:gray", "tab:blue"), results.items(), strict=True):
        curves = [read_curve(run.run_dir) for run in runs]
        for epochs, accuracy in curves:
            axes.plot(epochs, accuracy, color=color, alpha=0.3, linewidth=1)
        mean = [statistics.mean(values) for values in zip(*(accuracy for _, accuracy in curves), strict=True)]
        axes.plot(curves[0][0], mean, color=color, linewidth=2.5, label=f"{variant} (mean of {len(runs)} seeds)")
    axes.set(xlabel="epoch", ylabel="validation accuracy (%)", ylim=(0, 100), title="Locality guidance on digits")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    started = time.perf_counter()
    configs = {v: [demo_config(v, seed, options.out) for seed in options.seeds] for v in RECIPES}
    flat = [config for pair in zip(*configs.values(), strict=True) for config in pair]
    by_dir = run_all(flat, options.workers)
    results = {variant: [by_dir[config.run_dir] for config in group] for variant, group in configs.items()}
    plot(results, options.out / "curves.png")
    text = table(results)
    (options.out / "table.md").write_text(text + "\n")
    guided = results["guided"][0]
    print(f"\nteacher test accuracy {guided.teacher_test_top1:.2f} %\n\n{text}\n")
    print(f"{time.perf_counter() - started:.0f} s; curves in {options.out / 'curves.png'}, runs in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
