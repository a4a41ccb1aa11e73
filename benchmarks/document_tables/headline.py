"""The README's table: measured rows alone, accuracy first."""

from __future__ import annotations

from pathlib import Path

from benchmarks.document_tables.accuracy import SETTINGS, Setting, accuracy_line, accuracy_rows
from benchmarks.document_tables.rows import Row, bench_files
from benchmarks.document_tables.subjects import SUBJECTS
from benchmarks.document_tables.throughput import newest, throughput_line
from lgfast.reports.table import Table


def headline(results: Path) -> str:
    """Return the table: settings and subjects of which both sides are measured."""

    lines: list[list[str]] = []
    for student, places in accuracy_rows(results).items():
        for where, rows in places.items():
            if student in SETTINGS and {"base", "guided"} <= rows.keys():
                lines.append(headline_accuracy(SETTINGS[student], where, rows))
    files = list(bench_files(results))
    for subject in filter(lambda subject: subject.headline, SUBJECTS):
        for rows in newest(subject, files).values():
            _, shape_of, where, mine, peer, ratio, _ = throughput_line(subject, rows)
            if ratio:
                lines.append([f"{subject.headline}, {shape_of}", where, peer, mine, ratio])
    return Table(["what", "hardware", "without lgfast", "with lgfast", "gain"], lines).markdown()


def headline_accuracy(setting: Setting, where: str, rows: dict[str, Row]) -> list[str]:
    """Return the cells of a setting whose base and guided students are both measured."""
    _, _, base, guided, *_ = accuracy_line(setting, where, rows)
    gain = float(rows["guided"]["best_top1"]) - float(rows["base"]["best_top1"])
    return [f"accuracy, {setting.text}", where, f"{base} %", f"{guided} %", f"{gain:+.1f} points"]
