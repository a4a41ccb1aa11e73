"""The tables of README.md and docs/ say what the results say, and the newest of them."""

import csv
from pathlib import Path

import pytest

from benchmarks import tables
from benchmarks.document_tables.rows import NOT_YET

GPU = "NVIDIA H100 80GB HBM3"
COMMON = {"device": "cuda", "hardware": GPU, "cuda": "13.0"}


def test_documents_are_made_from_the_results():
    assert tables.main(["--check"]) == 0


def test_the_readme_holds_measured_rows_alone_and_docs_what_waits():
    readme, waiting = (tables.DOCUMENTS[place].read_text() for place in (0, 1))
    assert "<!-- table: headline -->" in readme and NOT_YET not in readme
    assert NOT_YET in waiting


def test_no_cell_of_a_document_is_longer_than_a_screen():
    rows = [line for path in tables.DOCUMENTS for line in path.read_text().splitlines() if line.startswith("|")]
    assert rows and max(len(cell) for row in rows for cell in row.split("|")) <= 200


def write(folder: Path, name: str, rows: list[dict], **common: str) -> None:
    folder.mkdir(exist_ok=True)
    with (folder / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=[*rows[0], *common])
        writer.writeheader()
        writer.writerows(row | common for row in rows)


def attention(provider: str, median_ms: object, mode: str = "fwd", shape: str = "deit_tiny B=256") -> dict:
    return {"provider": provider, "mode": mode, "dtype": "bfloat16", "shape": shape, "median_ms": median_ms}


def lines_of(results: Path, subject: str) -> list[list[str]]:
    rows = [line.strip("| ").split(" | ") for line in tables.throughput(results).splitlines()]
    return [row for row in rows if row[0] == subject]


def test_newest_file_of_a_day_counts_with_its_own_peers(tmp_path):
    write(tmp_path, "2026-01-02_h100_short_attention.csv", [attention("lgfast", 4), attention("flash", 5)], **COMMON)
    write(tmp_path, "2026-01-02_h100_short_attention-2.csv", [attention("lgfast", 2), attention("flash", 5)], **COMMON)
    write(tmp_path, "2026-01-02_h100_short_attention-10.csv",
          [attention("lgfast", 3), attention("flash", 9), attention("cudnn", 6)], **COMMON)  # fmt: skip
    write(tmp_path, "2026-01-01_h100_short_attention.csv", [attention("lgfast", 1), attention("flash", 1)], **COMMON)
    (line,) = lines_of(tmp_path, "`short_attention`, forward")
    assert line[1:6] == ["deit_tiny B=256 bf16", GPU, "3 ms", "6 ms (cudnn)", "2.00x"]
    assert lines_of(tmp_path, "`short_attention`, backward")[0][3] == "not yet measured"


def test_newer_files_of_other_shapes_or_without_peers_leave_a_subject_as_it_is(tmp_path):
    write(tmp_path, "2026-01-01_h100_short_attention.csv", [attention("lgfast", 2), attention("flash", 5)], **COMMON)
    write(tmp_path, "2026-01-02_h100_short_attention.csv", [attention("lgfast", 7, shape="pit_ti B=256")], **COMMON)
    write(tmp_path, "2026-01-03_h100_short_attention.csv", [attention("lgfast", 8)], **COMMON)
    (line,) = lines_of(tmp_path, "`short_attention`, forward")
    assert line[3:6] == ["2 ms", "5 ms (flash)", "2.50x"]


def test_every_hardware_has_its_line(tmp_path):
    rows = [{"provider": p, "shape": "x", "images_per_s": v} for p, v in (("resident", 4000), ("timm", 1000))]
    write(tmp_path, "2026-01-01_h100_loader.csv", rows, **COMMON)
    write(tmp_path, "2026-01-01_epyc_loader.csv", rows, device="cpu", hardware="EPYC x2")
    write(tmp_path, "2026-01-01_old_loader.csv", rows, hardware="older CPU", cuda="")  # before the column `device`
    lines = lines_of(tmp_path, "loader, 32 -> 224")
    assert [line[2] for line in lines] == [GPU, "EPYC x2", "older CPU"]
    assert lines[0][3:6] == ["4,000 images/s", "1,000 images/s (timm)", "4.00x"]  # a rate: higher is better


def test_rows_out_of_memory_are_no_peers_and_lgfast_s_own_is_stated(tmp_path):
    rows = [attention("lgfast", 2), attention("math", ""), attention("flash", 3)]
    write(tmp_path, "2026-01-01_h100_short_attention.csv", rows, **COMMON)
    assert lines_of(tmp_path, "`short_attention`, forward")[0][4] == "3 ms (flash)"
    rows = [attention("lgfast", ""), attention("flash", 3)]
    write(tmp_path, "2026-01-02_h100_short_attention.csv", rows, **COMMON)
    assert lines_of(tmp_path, "`short_attention`, forward")[0][3] == "out of memory"


def accuracy_row(student: str, variant: str, top1: float, gpu: str = "") -> dict:
    row = {"student": student, "variant": variant, "seeds": 1, "best_top1": top1, "best_std": "", "gpu": gpu}
    return row | {"published_top1": {"base": 65.08, "guided": 78.15}[variant], "minutes": 7}


def test_accuracy_takes_each_variant_from_its_newest_table(tmp_path):
    """The suite's names and those of lgfast.reproduce mean the same student."""
    for folder in ("2026-01-01_h100_cifar100", "2026-01-02_h100_cifar100"):
        (tmp_path / folder).mkdir()
    rows = [accuracy_row("cifar100-deit-ti", "base", 64.0, GPU), accuracy_row("cifar100-deit-ti", "guided", 70.0, GPU)]
    write(tmp_path / "2026-01-01_h100_cifar100", "table.csv", rows)
    write(tmp_path / "2026-01-02_h100_cifar100", "table.csv", [accuracy_row("deit-ti", "guided", 78.5, GPU)])
    text = tables.accuracy(tmp_path)
    (line,) = [line for line in text.splitlines() if line.startswith("| DeiT-Ti")]
    assert f"| {GPU} | 64.00 | 78.50 | 65.08 / 78.15 | 1 | 7.0 |" in line
    assert text.count("not yet measured") == 2 * 5  # the paper's other students


def test_a_changed_recipe_is_not_the_papers(tmp_path):
    (tmp_path / "2026-01-01_epyc_cifar100").mkdir()
    row = accuracy_row("deit-ti", "base", 9.0) | {"changes": "epochs=6 data.train_limit=4000"}
    write(tmp_path / "2026-01-01_epyc_cifar100", "table.csv", [row])
    text = tables.accuracy(tmp_path)
    (line,) = [line for line in text.splitlines() if "9.00" in line]
    assert "command 1 below" in line
    long = "python -m lgfast.reproduce --rows deit-ti \\\n    --set epochs=6 \\\n    --set data.train_limit=4000\n"
    assert f"Command 1:\n\n```\n{long}```" in text
    assert "65.08" not in line
    assert text.count("not yet measured") == 2 * 6 + 1  # the paper's students, and the changed one's guided run


def test_the_headline_compares_what_was_measured(tmp_path):
    (tmp_path / "2026-01-01_epyc_cifar100").mkdir()
    rows = [accuracy_row("deit-ti", "base", 64.0), accuracy_row("deit-ti", "guided", 70.5)]
    rows += [accuracy_row("pit-ti", "guided", 75.0)]  # without its base there is no gain to tell
    write(tmp_path / "2026-01-01_epyc_cifar100", "table.csv", rows)
    write(tmp_path, "2026-01-02_h100_short_attention.csv", [attention("lgfast", 2), attention("flash", 5)], **COMMON)
    write(tmp_path, "2026-01-02_h100_optimizer.csv", [attention("lgfast", 2, shape="deit_tiny")], **COMMON)
    lines = [line.strip("| ").split(" | ") for line in tables.headline(tmp_path).splitlines()[2:]]
    assert lines == [
        ["accuracy, DeiT-Ti, the paper's recipe", "epyc", "64.00 %", "70.50 %", "+6.5 points"],
        ["attention, forward, deit_tiny B=256 bf16", GPU, "5 ms (flash)", "2 ms", "2.50x"],
    ]


def test_check_fails_where_readme_and_results_differ(tmp_path, capsys):
    readme, results = tmp_path / "README.md", tmp_path / "results"
    readme.write_text("before\n<!-- table: throughput -->\nold\n<!-- end -->\nafter\n")
    options = [str(readme), "--results", str(results)]
    assert tables.main([*options, "--check"]) == 1
    assert "python benchmarks/tables.py" in capsys.readouterr().err
    assert tables.main(options) == 0 and tables.main([*options, "--check"]) == 0
    assert readme.read_text().startswith("before\n") and readme.read_text().endswith("after\n")
    write(results, "2026-01-01_h100_short_attention.csv", [attention("lgfast", 2)], **COMMON)
    assert tables.main([*options, "--check"]) == 1


def test_unknown_and_unended_tables_are_errors(tmp_path):
    with pytest.raises(ValueError, match="unknown table 'speed'"):
        tables.render("<!-- table: speed -->\n<!-- end -->", tmp_path)
    with pytest.raises(ValueError, match="no `<!-- end -->`"):
        tables.render("<!-- table: accuracy -->\n", tmp_path)
