"""Timing, memory, provenance and result files, shared by the benchmarks.

A bench function returns rows (dicts); `write_rows` adds where and when they were measured and writes one CSV per run to
benchmarks/results/<date>_<hardware>_<bench>.csv. A file is never edited afterwards.
"""

from __future__ import annotations

import csv
import datetime
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from lgfast.environment import git_commit

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: median, 20th and 80th percentile."""

    median_ms: float
    p20_ms: float
    p80_ms: float


def time_interleaved(
    calls: dict[str, Callable[[], object]], device: torch.device, rounds: int = 50, warmup: int = 5
) -> dict[str, Timing]:
    """Times every call once a round, so that a busy moment of the machine meets all of them alike."""
    for call in calls.values():
        for _ in range(warmup):
            call()
    once = _cuda_ms if device.type == "cuda" else _cpu_ms
    samples = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            samples[name].append(once(call))
    return {name: _timing(values) for name, values in samples.items()}


def peak_mib(call: Callable[[], object], device: torch.device) -> float | None:
    """Device memory a call needs beyond what is already allocated; None on the CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def provenance(device: torch.device) -> dict[str, str]:
    """Where, with what and when a row was measured."""
    return {
        "hardware": hardware(device),
        "driver": _driver() if device.type == "cuda" else "",
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "cuda": (torch.version.cuda or "") if device.type == "cuda" else "",
        "commit": git_commit() or "",
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def hardware(device: torch.device) -> str:
    """The GPU's name, or the CPU's with the number of threads torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return f"{found[1].strip() if found else platform.machine()} x{torch.get_num_threads()}"


def describe(row: dict) -> str:
    """One line of a row for the terminal."""
    name = " ".join(str(row[key]) for key in ("op", "shape", "dtype", "mode", "provider"))
    return f"{name:<60} {row['median_ms']:9.3f} ms  ({row['p20_ms']:.3f} to {row['p80_ms']:.3f})"


def write_rows(bench: str, rows: list[dict], device: torch.device, folder: Path = RESULTS) -> Path:
    """Writes rows with their provenance to a new file and returns its path."""
    common = provenance(device)
    slug = re.sub(r"[^a-z0-9]+", "-", common["hardware"].lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    path = _unused(folder / f"{common['date'][:10]}_{slug}_{bench}.csv")
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=[*rows[0], *common])
        writer.writeheader()
        writer.writerows({key: _format(value) for key, value in {**row, **common}.items()} for row in rows)
    return path


def _unused(path: Path) -> Path:
    """path, or path with -2, -3, ... where earlier runs of the day left files."""
    candidates = [path, *(path.with_stem(f"{path.stem}-{i}") for i in range(2, 1000))]
    return next(candidate for candidate in candidates if not candidate.exists())


def _format(value: object) -> object:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else value


def _timing(samples: list[float]) -> Timing:
    fifths = statistics.quantiles(samples, n=5)
    return Timing(statistics.median(samples), fifths[0], fifths[-1])


def _cpu_ms(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def _cuda_ms(call: Callable[[], object]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    result = subprocess.run(query, capture_output=True, text=True)
    return result.stdout.splitlines()[0].strip() if result.returncode == 0 else ""
