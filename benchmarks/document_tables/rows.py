"""Read results: the files of benches in order of age, and the rows in them."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[1] / "results"
NOT_YET = "not yet measured"  # a cell that waits for a GPU
Row = dict[str, str]


def read_csv(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def age(path: Path) -> tuple[str, int, str]:
    """Return the key by which results sort: date, then the number of the day's run, then name."""
    number = re.search(r"-(\d+)$", path.stem)
    return path.name[:10], int(number[1]) if number else 1, path.name


def bench_files(results: Path) -> Iterable[tuple[str, list[Row]]]:
    """Yield the bench and the rows of every file, the oldest first."""
    for path in sorted(results.glob("*_*_*.csv"), key=age):
        yield re.sub(r"-\d+$", "", path.stem.split("_", 2)[2]), read_csv(path)


def hardware(row: Row) -> str:
    return row.get("hardware") or f"{row.get('cpu', 'CPU')} x{row.get('cores', '1')}"


def is_gpu(row: Row) -> bool:
    return row["device"] == "cuda" if row.get("device") else bool(row.get("cuda"))
