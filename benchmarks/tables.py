"""Writes the tables of README.md and docs/: measurements from benchmarks/results/, kernels by GPU from their plan.

    python benchmarks/tables.py            # rewrites what stands between `<!-- table: NAME -->` and `<!-- end -->`
    python benchmarks/tables.py --check    # fails where a document says something else than the results

Of every hardware, the newest file that has a subject's rows and peers counts. A ratio compares rows of one file.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from itertools import groupby
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # in place of benchmarks/

from lgfast import _extension  # noqa: E402
from lgfast.doctor.gpus import GPUS, STUDENT_ATTENTIONS, attention_kernels  # noqa: E402
from lgfast.ops.short_attention import FIRST_CAPABILITY  # noqa: E402
from lgfast.reports.spread import Spread  # noqa: E402
from lgfast.reports.table import Table  # noqa: E402

DOCUMENTS = (ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("benchmarks", "guidance", "install")))
RESULTS = ROOT / "benchmarks" / "results"
NOT_YET = "not yet measured"
LONGEST_CELL = 80  # letters of a command; a longer one stands below its table
Row = dict[str, str]


@dataclass(frozen=True)
class Subject:
    """One line of the throughput table for each hardware.

    `gpu` and `cpu` are patterns of the columns a row must match there; None: it is not measured there.
    """

    name: str
    bench: str  # as in names of files: <date>_<hardware>_<bench>.csv
    gpu: Row | None
    cpu: Row | None
    value: str = "median_ms"  # the column compared; times are better lower, rates higher
    own: tuple[str, ...] = ("lgfast",)
    ignored: tuple[str, ...] = ()  # variants of lgfast, which are no peers either
    headline: str = ""  # what the README calls it; "": the README leaves it out

    @property
    def command(self) -> str:
        return f"`python -m benchmarks.bench_{self.bench}`"

    def is_own(self, row: Row) -> bool:
        return row["provider"] in self.own

    def is_peer(self, row: Row) -> bool:
        return not row["provider"].startswith("lgfast") and row["provider"] not in self.own + self.ignored


SUBJECTS = (
    *(
        Subject(
            f"`short_attention`, {name}",
            "short_attention",
            {"mode": mode, "shape": "deit_tiny B=256"},
            {"mode": mode, "dtype": "bfloat16", "shape": "deit_tiny*"},
            headline=f"attention, {name}",
        )
        for name, mode in (("forward", "fwd"), ("backward", "bwd"))
    ),
    Subject(
        "`feature_mse`, forward and backward",
        "feature_mse",
        {"mode": "both", "dtype": "bfloat16", "shape": "deit_tiny B=128"},
        {"mode": "both", "dtype": "float32", "shape": "deit_tiny B=32"},
        headline="guidance loss, forward and backward",
    ),
    Subject("`augment`", "augment", {"shape": "*B=128"}, {"shape": "*B=128"}, "images_per_s"),
    *(
        Subject(
            f"`{op}`, forward and backward",
            "fused_layers",
            {"op": op, "mode": "both", "dtype": "bfloat16", "shape": "deit_tiny B=256"},
            {"op": op, "mode": "both", "dtype": "bfloat16"},
        )
        for op in ("add_layer_norm", "bias_gelu", "patch_conv")
    ),
    Subject("`flat_adamw`", "optimizer", {"shape": "deit_tiny*"}, {"shape": "deit_tiny*"}),
    Subject(
        "loader, 32 -> 224",
        "loader",
        {},
        {},
        "images_per_s",
        ("resident",),
        ignored=("dali",),
        headline="data loader with RandAugment",
    ),
    Subject(
        "guided step, DeiT-Ti",
        "train_step",
        {"mode": "guided", "shape": "deit_tiny_224 B=128"},
        {"mode": "guided", "shape": "deit_tiny_224*"},
        "images_per_s",
        ignored=("bare", "loop"),
        headline="guided training step",
    ),
    Subject(
        "guided step, digits",
        "train_step",
        None,
        {"mode": "guided", "shape": "digits B=32"},
        "images_per_s",
        ignored=("bare", "loop"),
    ),
    Subject(
        "sweep",
        "sweep",
        {"shape": "deit-ti*"},
        {"shape": "heavy*"},
        "trials_per_hour",
        ("group", "groups"),
        headline="sweep",
    ),
)


@dataclass(frozen=True)
class Setting:
    """One line of the accuracy table for each hardware."""

    text: str
    command: str  # too long for a cell where it changes many keys: then it stands below the table
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


def read_csv(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def age(path: Path) -> tuple[str, int, str]:
    """Sorts results: by date, then by the number of the day's run."""
    number = re.search(r"-(\d+)$", path.stem)
    return path.name[:10], int(number[1]) if number else 1, path.name


def bench_files(results: Path) -> Iterable[tuple[str, list[Row]]]:
    """Bench and rows of every file, oldest first."""
    for path in sorted(results.glob("*_*_*.csv"), key=age):
        yield re.sub(r"-\d+$", "", path.stem.split("_", 2)[2]), read_csv(path)


def hardware(row: Row) -> str:
    return row.get("hardware") or f"{row.get('cpu', 'CPU')} x{row.get('cores', '1')}"


def is_gpu(row: Row) -> bool:
    return row["device"] == "cuda" if row.get("device") else bool(row.get("cuda"))


def matching(subject: Subject, rows: Iterable[Row]) -> list[Row]:
    """Rows of one shape that a subject compares: the first shape that its patterns fit."""
    found = []
    for row in rows:
        pattern = subject.gpu if is_gpu(row) else subject.cpu
        if pattern is not None and all(fnmatch(row.get(key, ""), want) for key, want in pattern.items()):
            found.append(row)
    return [row for row in found if row.get("shape") == found[0].get("shape")]


def newest(subject: Subject, files: Iterable[tuple[str, list[Row]]]) -> dict[str, list[Row]]:
    """By hardware, a subject's rows in the newest file that has lgfast's; one with peers before one without."""
    found: dict[str, list[Row]] = {}
    for bench, rows in files:
        chosen = matching(subject, rows) if bench == subject.bench else []
        if any(subject.is_own(row) for row in chosen):
            earlier = found.get(hardware(chosen[0]), [])
            if any(map(subject.is_peer, chosen)) or not any(map(subject.is_peer, earlier)):
                found[hardware(chosen[0])] = chosen
    return found


def throughput_line(subject: Subject, rows: list[Row]) -> list[str]:
    """Cells of one subject on one hardware; rates of lgfast's best provider and of the best peer."""
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
    """With what it is computed in."""
    short = {"bfloat16": "bf16", "float32": "fp32"}
    dtype = rows[0].get("dtype") or ""
    return f"{rows[0].get('shape', '')} {short.get(dtype, dtype)}".strip()


def amount(row: Row, column: str) -> str:
    """A value with its unit."""
    value = float(row[column])
    if column.endswith("_ms"):
        return f"{value:.3g} ms"
    unit = {"images_per_s": "images/s", "trials_per_hour": "trials/h"}[column]
    return f"{value:,.0f} {unit}"


def throughput(results: Path) -> str:
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


def accuracy_rows(results: Path) -> dict[str, dict[str, dict[str, Row]]]:
    """The newest row by student, hardware and variant, of the tables that lgfast.reproduce wrote.

    A student whose runs have changes of the recipe is named with them: "deit-ti epochs=6".
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
    """A command under a table, an option a line."""
    options = command.replace(" --set ", " \\\n    --set ")
    return f"Command {number}:\n\n```\n{options}\n```"


def setting_of(student: str) -> Setting:
    """The line of a student that has none of its own, or whose recipe was changed."""
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

    is_changed = any(row.get("changes") for row in rows.values())  # then the published figure is of something else
    published = "" if is_changed else both(lambda row: number(row, "published_top1", 2), " / ")
    minutes = both(lambda row: number(row, "minutes", 1), " / ")
    seeds = both(lambda row: row["seeds"], " / ")
    return [setting.text, where, top1("base"), top1("guided"), published, seeds, minutes, setting.command]


def headline(results: Path) -> str:
    """The README's table: measured rows alone, accuracy first."""
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
    """Cells of a setting whose base and guided students are both measured."""
    _, _, base, guided, *_ = accuracy_line(setting, where, rows)
    gain = float(rows["guided"]["best_top1"]) - float(rows["base"]["best_top1"])
    return [f"accuracy, {setting.text}", where, f"{base} %", f"{guided} %", f"{gain:+.1f} points"]


def method_scores(results: Path) -> dict[str, dict[str, float]]:
    """Percent of the validation images after the last epoch, by method and seed, of runs of guidance_methods."""
    found: dict[str, dict[str, float]] = {}
    for path in sorted(results.glob("*_methods/*-seed*.summary.csv"), key=lambda path: age(path.parent)):
        method, seed = path.name.removesuffix(".summary.csv").rsplit("-seed", 1)
        found.setdefault(method, {})[seed] = float(read_csv(path)[-1]["val_top1"])
    return found


def methods(results: Path) -> str:
    """Every method beside guidance alone, with which its seeds are paired; the best first."""
    found = method_scores(results)
    guided = found.get("guided", {})

    def line(method: str, scores: dict[str, float]) -> list[str]:
        gains = Spread.of(score - guided[seed] for seed, score in scores.items() if seed in guided)
        sign = "+" if gains.mean is not None and gains.mean >= 0 else ""
        told = "" if method == "guided" else sign + str(gains)
        return [method, str(Spread.of(scores.values())), told, str(len(scores))]

    ranked = sorted(found.items(), key=lambda item: -mean(item[1].values()))
    return Table(["method", "validation (%)", "beside guided", "seeds"], [line(*item) for item in ranked]).markdown()


def attention_by_gpu(results: Path) -> str | None:
    """Which of short_attention's kernels run on which GPU; None where lgfast._C, which knows, is not built."""
    if not _extension.has_native():
        return None
    limits: dict[int, list[str]] = {}
    for capability, gpu in sorted(GPUS.items(), key=lambda item: (item[1].block_smem, item[0])):
        if capability >= FIRST_CAPABILITY:
            limits.setdefault(gpu.block_smem, []).append("{}.{}".format(*capability))
    lines = []
    for student, attentions in STUDENT_ATTENTIONS.items():
        for cells, alike in groupby(attentions, lambda one: [attention_kernels(limit, one) for limit in limits]):
            alike = list(alike)
            tokens = ", ".join(one.tokens for one in alike)
            lines.append([f"{student}: {tokens} tokens", str(alike[0].head_dim), *cells])
    gpus = [f"{', '.join(names)} ({limit >> 10} KB)" for limit, names in limits.items()]
    return Table(["attention at 224", "head dim", *gpus], lines).markdown()


TABLES: dict[str, Callable[[Path], str | None]] = {
    "headline": headline,
    "throughput": throughput,
    "accuracy": accuracy,
    "methods": methods,
    "attention_by_gpu": attention_by_gpu,
}


def render(text: str, results: Path) -> str:
    """The text with every table made anew, but those that cannot be made here.

    Raises:
        ValueError: a table is unknown, or not ended.
    """

    def table(found: re.Match) -> str:
        if found[2] not in TABLES:
            raise ValueError(f"unknown table {found[2]!r}; known: {', '.join(TABLES)}")
        made = TABLES[found[2]](results)
        return found[0] if made is None else f"{found[1]}\n{made}\n<!-- end -->"

    made, count = re.subn(r"(<!-- table: (\w+) -->)\n.*?<!-- end -->", table, text, flags=re.DOTALL)
    if count != text.count("<!-- table:"):
        raise ValueError("a table has no `<!-- end -->`")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where they differ from results")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("documents", type=Path, nargs="*", default=DOCUMENTS, help="default: README.md and docs/")
    options = parser.parse_args(argv)
    stale = 0
    for document in options.documents:
        text = document.read_text()
        made = render(text, options.results)
        if made == text:
            continue
        stale += 1
        if options.check:
            print(f"{document} is not what the results say; run: python benchmarks/tables.py", file=sys.stderr)
        else:
            document.write_text(made)
            print(f"wrote {document}")
    return 1 if stale and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
