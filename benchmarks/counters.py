"""Read hardware counters of single kernels with Nsight Compute's ncu.

    python -m benchmarks.counters [--kernels augment,feature_mse] [--out FOLDER]

Counts one launch of each kernel at its target shape, and leaves the clocks as they are. The CSV has, for every CUDA
kernel that the call launches, the COUNTERS below that ncu's full set holds. ncu's own tables of all counters lie beside
the CSV.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks import row_file
from benchmarks.kernels.table import KERNELS
from benchmarks.suite.preflight import program

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 45.0  # time limit of one kernel
# Column of a row -> ncu's metric. Units: ns, Hz, bytes, counts, percent.
COUNTERS = {
    "time_ns": "gpu__time_duration.sum",
    "clocks": "sm__cycles_elapsed.max",
    "clock_hz": "sm__cycles_elapsed.avg.per_second",
    "instructions": "smsp__inst_executed.sum",
    "issue_share": "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "tensor_share": "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active",
    "special_share": "sm__inst_executed_pipe_xu.avg.pct_of_peak_sustained_active",
    "warps_share": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "registers": "launch__registers_per_thread",
    "smem_bytes": "launch__shared_mem_per_block_dynamic",
    "smem_wavefronts": "l1tex__data_pipe_lsu_wavefronts_mem_shared.sum",
    "bank_conflicts": "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum",
    "dram_read_bytes": "dram__bytes_read.sum",
    "dram_write_bytes": "dram__bytes_write.sum",
    "local_bytes": "smsp__inst_executed_op_local.sum",
}


def ncu(report: Path, name: str) -> list[str]:
    """Return the command that counts one kernel into a report."""
    return [
        program("ncu"), "--clock-control", "none", "--profile-from-start", "off", "--target-processes", "all",
        "--set", "full", "--force-overwrite", "--export", str(report),
        sys.executable, "-m", "benchmarks.kernels.once", name,
    ]  # fmt: skip


def counted(folder: Path, name: str) -> Iterator[dict]:
    """Count one kernel and return its rows; its report and table stay in the folder."""
    report = folder / f"ncu_{name}.ncu-rep"
    done = subprocess.run(ncu(report, name), cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    if done.returncode:
        raise RuntimeError((done.stdout + done.stderr).strip().splitlines()[-1])
    pages = {
        page: subprocess.run(
            [program("ncu"), "--import", str(report), "--page", page, *more],
            capture_output=True, text=True, check=True, timeout=SECONDS,
        ).stdout
        for page, more in (("details", []), ("raw", ["--csv", "--print-units", "base"]))
    }  # fmt: skip
    report.with_suffix(".txt").write_text(pages["details"])
    report.with_suffix(".csv").write_text(pages["raw"])
    yield from read(name, pages["raw"])


def read(name: str, page: str) -> Iterator[dict]:
    """Read the rows of ncu's raw page in CSV: a line of names, one of units, then one for each kernel."""
    lines = [line for line in page.splitlines() if line.startswith('"')]
    for number, row in enumerate(csv.DictReader(lines)):
        if number:  # the first holds the units
            values = {column: row.get(metric, "") for column, metric in COUNTERS.items()}
            numbers = {column: value.replace(",", "") for column, value in values.items()}
            yield {"op": name, "provider": "lgfast", "mode": "counters", "kernel": row["Kernel Name"][:100], **numbers}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernels", default=",".join(KERNELS), help="comma-separated; default: all")
    parser.add_argument("--out", type=Path, default=row_file.RESULTS, help="folder of the CSV and of ncu's reports")
    parser.add_argument("--device", default="cuda", help="device whose name the rows carry; default cuda")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    file, failed = row_file.RowFile("counters", torch.device(options.device), options.out), []
    for name in options.kernels.split(","):
        try:
            for row in counted(options.out, name):
                print(" ".join(f"{key}={value}" for key, value in row.items() if value), flush=True)
                file.add(row)
        except (RuntimeError, subprocess.SubprocessError) as error:
            failed.append(name)
            print(f"{name}: {error}", flush=True)
    print(f"{'not counted: ' * bool(failed)}{', '.join(failed) or file.path}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
