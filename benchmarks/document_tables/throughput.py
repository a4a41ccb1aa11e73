"""The throughput table: lgfast against the best peer, by subject and hardware."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path

from benchmarks.document_tables.rows import NOT_YET, Row, bench_files, hardware, is_gpu
from benchmarks.document_tables.subjects import SUBJECTS, Subject
from lgfast.reports.table import Table


def matching(subject: Subject, rows: Iterable[Row]) -> list[Row]:
    """Return the rows that a subject compares: those of the first shape that fits its patterns."""
    found = []
    for row in rows:
        pattern = subject.gpu if is_gpu(row) else subject.cpu
        if pattern is not None and all(fnmatch(row.get(key, ""), want) for key, want in pattern.items()):
            found.append(row)
    return [row for row in found if row.get("shape") == found[0].get("shape")]


def newest(subject: Subject, files: Iterable[tuple[str, list[Row]]]) -> dict[str, list[Row]]:
    """Return a subject's rows by hardware, from the newest file that has lgfast's; a file with peers comes first."""
    found: dict[str, list[Row]] = {}
    for bench, rows in files:
        chosen = matching(subject, rows) if bench == subject.bench else []
        if any(subject.is_own(row) for row in chosen):
            earlier = found.get(hardware(chosen[0]), [])
            if any(map(subject.is_peer, chosen)) or not any(map(subject.is_peer, earlier)):
                found[hardware(chosen[0])] = chosen
    return found


def throughput_line(subject: Subject, rows: list[Row]) -> list[str]:
    """Return the cells of one subject on one hardware: lgfast's best provider, the best peer, and their ratio."""
    is_time = subject.value.endswith("_ms")
    best = min if is_time else max
    timed = [row for row in rows if row[subject.value]]
    own, peers = list(filter(subject.is_own, timed)), list(filter(subject.is_peer, timed))
    cells = [subject.name, shape(own or rows), hardware(rows[0])]
    if not own:
        return [*cells, "out of memory", "", "", subject.command]
    mine = best(own, key=lambda row: float(row[subject.value]))
    cells.append(amount(mine, subject.value))
    if not peers:
        return [*cells, "", "", subject.command]
    peer = best(peers, key=lambda row: float(row[subject.value]))
    ratio = float(mine[subject.value]) / float(peer[subject.value])
    return [
        *cells,
        f"{amount(peer, subject.value)} ({peer['provider']})",
        f"{1 / ratio if is_time else ratio:.2f}x",
        subject.command,
    ]


def shape(rows: Sequence[Row]) -> str:
    """Return the shape and the dtype of the rows."""
    short = {"bfloat16": "bf16", "float32": "fp32"}
    dtype = rows[0].get("dtype") or ""
    return f"{rows[0].get('shape', '')} {short.get(dtype, dtype)}".strip()


def amount(row: Row, column: str) -> str:
    """Return a value with its unit."""
    value = float(row[column])
    if column.endswith("_ms"):
        return f"{value:.3g} ms"
    unit = {"images_per_s": "images/s", "trials_per_hour": "trials/h"}[column]
    return f"{value:,.0f} {unit}"


def throughput(results: Path) -> str:
    """Return the table, with a line that waits for every subject that no GPU has measured."""
    files = list(bench_files(results))
    lines: list[list[str]] = []
    for subject in SUBJECTS:
        found = newest(subject, files)
        if subject.gpu is not None and not any(is_gpu(rows[0]) for rows in found.values()):
            planned = subject.gpu.get("shape", "").replace("*", "")
            lines.append([subject.name, planned, "GPU", NOT_YET, "", "", subject.command])
        for rows in sorted(found.values(), key=lambda rows: not is_gpu(rows[0])):
            lines.append(throughput_line(subject, rows))
    return Table(["subject", "shape", "hardware", "lgfast", "best peer", "ratio", "command"], lines).markdown()
