"""Keep the rows of a benchmark in a CSV, with where and when they were measured.

A `RowFile` adds provenance to rows (dicts) and keeps one CSV per run, <folder>/<date>_<hardware>_<bench>.csv. A row
that ran out of memory stays in the file and says so. If LGFAST_DISABLE switches off kernels of a bench, its rows go to
<bench>_reduced, so that no table takes them for lgfast's.
"""

from __future__ import annotations

import csv
import datetime
import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from lgfast import _extension
from lgfast._native import switched_off
from lgfast.runtime.environment import cpu_name, git_commit

RESULTS = Path(__file__).parent / "results"
# The kernels of lgfast that a bench of single operations runs; other benches may run any.
KERNELS = {
    "short_attention": ("short_attention",),
    "feature_mse": ("feature_mse",),
    "augment": ("augment",),
    "optimizer": ("flat_adamw",),
    "fused_layers": ("add_layer_norm", "bias_gelu"),
    "ceilings": (),
    "smoke": (),
}


def provenance(device: torch.device) -> dict[str, str]:
    """Return where, with what and when a row was measured."""
    return {
        "device": device.type,
        "hardware": hardware(device),
        "kernels": _kernels(device),
        "driver": _driver() if device.type == "cuda" else "",
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "cuda": (torch.version.cuda or "") if device.type == "cuda" else "",
        "commit": git_commit() or "",
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def hardware(device: torch.device) -> str:
    """Return the GPU's name, or the CPU's with the number of torch's threads and the level it is held to."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    level = os.environ.get("LGFAST_CPU_LEVEL")
    return f"{cpu_name()} x{torch.get_num_threads()}" + (f" held to {level}" if level else "")


def slug(hardware: str) -> str:
    """Return the hardware's name as file names have it."""
    return re.sub(r"[^a-z0-9]+", "-", hardware.lower()).strip("-")


def describe(row: dict) -> str:
    """Describe a row in one line for the terminal."""
    name = " ".join(str(row.get(key, "")) for key in ("op", "shape", "dtype", "mode", "stage", "provider"))
    if row.get("median_ms") is None:
        return f"{name:<60} {row.get('error', '')}"
    spread = f"({row['p20_ms']:.3f} to {row['p80_ms']:.3f})" if row.get("p20_ms") is not None else ""
    shares = [f"{row[key]:.0%} of {key[:-6]}" for key in ("copy_share", "matmul_share") if row.get(key)]
    rate = [f"{row['images_per_s']:.0f} images/s"] if row.get("images_per_s") else []
    rate += [f"{row['times_timm']:.1f}x timm"] if row.get("times_timm") else []
    return f"{name:<60} {row['median_ms']:9.3f} ms  {spread}  {', '.join(rate + shares)}"


class RowFile:
    """The CSV of one run. Every row is written at once, so that a run that is cut short keeps its rows."""

    def __init__(self, bench: str, device: torch.device, folder: Path = RESULTS) -> None:
        self.common = provenance(device)
        if off := reduced_by(bench):
            self.common["switched_off"] = " ".join(off)
            bench = f"{bench}_reduced"
        folder.mkdir(parents=True, exist_ok=True)
        self.path = _unused(folder / f"{self.common['date'][:10]}_{slug(self.common['hardware'])}_{bench}.csv")
        self.rows: list[dict] = []

    def add(self, row: dict) -> None:
        self.rows.append(row)
        columns = dict.fromkeys([key for row in self.rows for key in row] + list(self.common))
        with open(self.path, "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=columns, lineterminator="\n")
            writer.writeheader()
            for row in self.rows:
                writer.writerow({key: _format(value) for key, value in {**row, **self.common}.items()})


def reduced_by(bench: str) -> list[str]:
    """Return the names in LGFAST_DISABLE that change what a bench measures."""
    return [name for name in switched_off() if any(part in name for part in KERNELS.get(bench, ("",)))]


def record(bench: str, rows: Iterable[dict], device: torch.device, folder: Path = RESULTS) -> None:
    """Measure rows one after the other; print and keep each."""
    file = RowFile(bench, device, folder)
    for row in rows:
        print(describe(row), flush=True)
        file.add(row)
    print(file.path if file.rows else f"{bench}: nothing was measured")


def write_rows(bench: str, rows: Sequence[dict], device: torch.device, folder: Path = RESULTS) -> Path:
    """Write rows with their provenance to a new file; return its path."""
    file = RowFile(bench, device, folder)
    for row in rows:
        file.add(row)
    return file.path


def _unused(path: Path) -> Path:
    """Return the path, or the path with -2, -3, ... if earlier runs of the day left files."""
    candidates = [path, *(path.with_stem(f"{path.stem}-{i}") for i in range(2, 1000))]
    return next(candidate for candidate in candidates if not candidate.exists())


def _format(value: object) -> object:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else value


def _kernels(device: torch.device) -> str:
    """Tell which of lgfast's kernels a row ran: native (C++, CUDA) or the reference in PyTorch."""
    built = _extension.has_cuda_kernels() if device.type == "cuda" else _extension.has_native()
    return "native" if built else "reference"


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        result = subprocess.run(query, capture_output=True, text=True)
    except OSError:  # an image without the program
        return ""
    return result.stdout.splitlines()[0].strip() if result.returncode == 0 else ""
