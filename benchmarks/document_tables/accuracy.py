"""The accuracy table: base and guided students, by setting and hardware."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.document_tables.rows import NOT_YET, Row, age, read_csv
from lgfast.reports.spread import Spread
from lgfast.reports.table import Table

LONGEST_CELL = 80  # letters of a command in a cell


@dataclass(frozen=True)
class Setting:
    """A setting has one line of the accuracy table for each hardware."""

    text: str
    command: str  # one that is too long for a cell stands below the table
    needs_gpu: bool = True


SETTINGS = {
    name: Setting(f"{text}, the paper's recipe", f"`python -m lgfast.reproduce --rows {name}`")
    for name, text in {
        "deit-ti": "DeiT-Ti", "t2t-vit-7": "T2T-ViT-7", "pit-ti": "PiT-Ti", "pvt-ti": "PVT-Ti",
        "pvtv2-b0": "PVTv2-B0", "convit-ti": "ConViT-Ti",
    }.items()
}  # fmt: skip
SETTINGS |= {
    "cifar100-cpu": Setting(
        "CIFAR-100, 6,000 images at 32x32, 15 epochs, ViT of 0.7 M parameters, ResNet-8 teacher; 2,000 test images, "
        "best epoch on them",
        "`python -m lgfast.reproduce --rows cifar100-cpu`",
        needs_gpu=False,
    ),
    "digits": Setting("digits, 500 images, 40 epochs, epoch chosen on validation", "`make demo`", needs_gpu=False),
}


def accuracy_rows(results: Path) -> dict[str, dict[str, dict[str, Row]]]:
    """Return the newest row by student, hardware and variant, from the tables that lgfast.reproduce wrote.

    A student whose recipe was changed is named with the changes: "deit-ti epochs=6".
    """
    found: dict[str, dict[str, dict[str, Row]]] = {}
    for path in sorted(results.glob("*/table.csv"), key=lambda path: age(path.parent)):
        for row in read_csv(path):
            student = row["student"].removeprefix("cifar100-")
            student = student if student in SETTINGS else row["student"]
            student = f"{student} {row.get('changes') or ''}".rstrip()
            where = row["gpu"] or path.parent.name.split("_")[1]
            found.setdefault(student, {}).setdefault(where, {})[row["variant"]] = row
    return found


def accuracy(results: Path) -> str:
    """Return the table, with a line that waits for every setting that no GPU has run; long commands follow it."""
    lines: list[list[str]] = []
    long_commands: list[str] = []
    found = accuracy_rows(results)
    for student in dict.fromkeys([*SETTINGS, *found]):
        setting = SETTINGS.get(student) or setting_of(student)
        places = found.get(student, {})
        if len(setting.command) > LONGEST_CELL:
            long_commands.append(setting.command.strip("`"))
            setting = replace(setting, command=f"command {len(long_commands)} below")
        if setting.needs_gpu and not any(row["gpu"] for rows in places.values() for row in rows.values()):
            lines.append([setting.text, "GPU", NOT_YET, NOT_YET, "", "", "", setting.command])
        for where, rows in places.items():
            lines.append(accuracy_line(setting, where, rows))
    titles = ["setting", "hardware", "base (%)", "guided (%)", "published (%)", "seeds", "minutes a run", "command"]
    return "\n\n".join(
        [Table(titles, lines).markdown(), *map(listing, range(1, 1 + len(long_commands)), long_commands)]
    )


def listing(number: int, command: str) -> str:
    """Return a command for below the table, with one option a line."""
    options = command.replace(" --set ", " \\\n    --set ")
    return f"Command {number}:\n\n```\n{options}\n```"


def setting_of(student: str) -> Setting:
    """Return the setting of a student that SETTINGS lacks, or whose recipe was changed."""
    name, *changes = student.split(" ")
    sets = "".join(f" --set {change}" for change in changes)
    text = f"{name}, its recipe changed as in the command" if changes else name
    return Setting(text, f"`python -m lgfast.reproduce --rows {name}{sets}`", needs_gpu=False)


def accuracy_line(setting: Setting, where: str, rows: dict[str, Row]) -> list[str]:
    def both(cell: Callable[[Row], str], joint: str) -> str:
        cells = [cell(rows[variant]) if variant in rows else "-" for variant in ("base", "guided")]
        return "" if set(cells) <= {"-", ""} else joint.join(cells) if cells[0] != cells[1] else cells[0]

    def number(row: Row, column: str, digits: int) -> str:
        return f"{float(row[column]):.{digits}f}" if row.get(column) else "-"

    def top1(variant: str) -> str:
        if variant not in rows:
            return NOT_YET
        found = [float(rows[variant][name]) if rows[variant].get(name) else None for name in ("best_top1", "best_std")]
        return str(Spread(*found))

    is_changed = any(row.get("changes") for row in rows.values())  # the published figure is not of a changed recipe
    published = "" if is_changed else both(lambda row: number(row, "published_top1", 2), " / ")
    minutes = both(lambda row: number(row, "minutes", 1), " / ")
    seeds = both(lambda row: row["seeds"], " / ")
    return [setting.text, where, top1("base"), top1("guided"), published, seeds, minutes, setting.command]
