"""Measure what the hardware can do: bandwidth of a large copy, rate of a large matrix product.

    python -m benchmarks.ceilings [--out FOLDER]

copy: from device to device; bytes read and bytes written both count. matmul: of square matrices, bfloat16 on CUDA,
float32 on CPU; 2 n^3 operations. Other benchmarks give their rows as shares of these two (`Ceilings.shares`).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import harness, row_file


@dataclass(frozen=True)
class Ceilings:
    """Measured limits of one device."""

    copy_gb_per_s: float
    matmul_tflop_per_s: float

    def shares(
        self, timing: harness.Timing, num_bytes: float | None = None, num_flops: float | None = None
    ) -> dict[str, float | None]:
        """Return columns of a row: bytes and operations of one call per second, and their shares of the ceilings."""
        columns = {}
        if num_bytes is not None:
            gb_per_s = timing.per_s(num_bytes / 1e9)
            columns |= {"gb_per_s": gb_per_s, "copy_share": _ratio(gb_per_s, self.copy_gb_per_s)}
        if num_flops is not None:
            tflop_per_s = timing.per_s(num_flops / 1e12)
            columns |= {"tflop_per_s": tflop_per_s, "matmul_share": _ratio(tflop_per_s, self.matmul_tflop_per_s)}
        return columns


def measure(device: torch.device, rounds: int = 20, scale: float = 1.0) -> Iterator[dict]:
    """Yield the rows `copy` and `matmul`. `scale` multiplies the sizes; take one below 1 for a rough figure."""
    yield copy_row(int(scale * (2**30 if device.type == "cuda" else 2**26)), device, rounds)
    yield matmul_row(int(scale * (8192 if device.type == "cuda" else 1024)), device, rounds)


def copy_row(num_bytes: int, device: torch.device, rounds: int) -> dict:
    source = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    timing = harness.time_interleaved({"copy": lambda: target.copy_(source)}, device, rounds, queued=True)["copy"]
    row = {"op": "ceiling", "provider": "copy", "mode": "", "dtype": "uint8", "shape": f"{num_bytes} B"}
    return {**row, **vars(timing), "gb_per_s": timing.per_s(2 * num_bytes / 1e9)}


def matmul_row(n: int, device: torch.device, rounds: int) -> dict:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    a, b = torch.randn(2, n, n, dtype=dtype, device=device).unbind()
    timing = harness.time_interleaved({"matmul": lambda: a @ b}, device, rounds, queued=True)["matmul"]
    row = {"op": "ceiling", "provider": "matmul", "mode": "", "dtype": str(dtype)[6:], "shape": f"{n}x{n}x{n}"}
    return {**row, **vars(timing), "tflop_per_s": timing.per_s(2 * n**3 / 1e12)}


def from_rows(rows: Sequence[dict]) -> Ceilings:
    by_name = {row["provider"]: row for row in rows}
    return Ceilings(float(by_name["copy"]["gb_per_s"]), float(by_name["matmul"]["tflop_per_s"]))


def load(path: Path | None, device: torch.device) -> Ceilings:
    """Read the ceilings from a CSV that this script wrote on the same hardware, or measure them now."""
    if path is not None:
        with path.open() as file:
            rows = list(csv.DictReader(file))
        if rows[0]["hardware"] == row_file.hardware(device):
            return from_rows(rows)
        print(f"measuring the ceilings: {path} is of {rows[0]['hardware']}, this is {row_file.hardware(device)}")
    return from_rows(list(measure(device)))


def _ratio(value: float | None, limit: float) -> float | None:
    return None if value is None else value / limit


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser(__doc__, rounds=20)
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the sizes; below 1 for a rough figure")
    options = parser.parse_args(argv)
    device = torch.device(options.device)
    row_file.record("ceilings", measure(device, options.rounds, options.scale), device, options.out)


if __name__ == "__main__":
    main()
