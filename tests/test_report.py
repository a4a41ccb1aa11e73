"""The report groups runs by what they differ in, and its figures are those of statistics and scipy on the same runs."""

import csv
import dataclasses
import json
import statistics

import pytest
from scipy.stats import ttest_rel

from lgfast.config import dump_yaml, load_recipe, replace
from lgfast.records.result import Result
from lgfast.report import main
from lgfast.reports.compare import compare
from lgfast.reports.runs import Setting, find_runs, group, read_run

BASE, GUIDED = [30.0, 34.5, 33.0], [41.0, 44.0, 46.5]  # test accuracy of seeds 0, 1, 2


def write_run(folder, seed, weight, test_top1=None, val_top1=(20.0, 50.0, 40.0), **changes):
    """The files of a run that the report reads; without test accuracy it is not finished."""
    folder.mkdir(parents=True)
    changes |= {"seed": seed, "guidance.weight": weight, "run_dir": str(folder), "name": folder.name}
    (folder / "config.yaml").write_text(dump_yaml(replace(load_recipe("digits"), changes)))
    lines = ["epoch,val_top1,seconds", *(f"{epoch},{top1},30" for epoch, top1 in enumerate(val_top1, 1))]
    lines.append(f"{len(val_top1) + 1},,30")
    (folder / "summary.csv").write_text("\n".join(lines) + "\n")
    if test_top1 is not None:
        result = Result(str(folder), test_top1, 90.0, test_top1 - 1, 2, "validation", max(val_top1), 60.0)
        (folder / "result.json").write_text(json.dumps(dataclasses.asdict(result)))
    return folder


@pytest.fixture
def runs(tmp_path):
    """Base and guided over three seeds."""
    for seed in range(3):
        write_run(tmp_path / "runs" / f"a-base-{seed}", seed, 0.0, BASE[seed])
        write_run(tmp_path / "runs" / f"b-guided-{seed}", seed, 2.5, GUIDED[seed])
    (tmp_path / "runs" / "last_error.txt").write_text("no run\n")
    return tmp_path / "runs"


def rows_of(*places):
    return compare(group([read_run(folder) for folder in find_runs(places)]))


def test_settings_are_the_keys_that_differ_and_their_figures_are_over_seeds(runs):
    base, guided = rows_of(*sorted(runs.iterdir()))
    assert (base["setting"], guided["setting"]) == ("guidance.weight=0.0", "guidance.weight=2.5")
    for row, values in ((base, BASE), (guided, GUIDED)):
        assert (row["runs"], row["trained"], row["tested"]) == (3, 3, 3)
        assert row["test_top1"] == pytest.approx(statistics.mean(values))
        assert row["test_top1_std"] == pytest.approx(statistics.stdev(values))
        assert row["last_test_top1"] == pytest.approx(statistics.mean(values) - 1)
        assert (row["val_score"], row["val_score_std"], row["minutes"]) == (50, 0, 2)


def test_differences_are_paired_by_seed(runs):
    row = rows_of(runs)[1]
    assert row["difference"] == pytest.approx(statistics.mean(GUIDED) - statistics.mean(BASE))
    assert row["p_value"] == pytest.approx(ttest_rel(GUIDED, BASE).pvalue)
    write_run(runs / "b-guided-9", 9, 2.5, 99.0)  # no partner: in the mean, not in the difference
    assert rows_of(runs)[1]["difference"] == pytest.approx(row["difference"])
    assert rows_of(runs)[1]["test_top1"] == pytest.approx(statistics.mean([*GUIDED, 99]))


def test_runs_without_a_test_are_compared_on_validation(runs, capsys):
    write_run(runs / "c-trial", 0, 1.0, val_top1=(61.0,), epochs=2)
    rows = rows_of(runs)
    assert [row["difference"] for row in rows] == [0, 0, 11]
    assert rows[2]["test_top1"] is None and rows[2]["p_value"] is None
    assert main([str(runs)]) == 0
    output = capsys.readouterr().out
    assert "| c-trial | epochs=2 guidance.weight=1.0 | 1 | 61.00 | - | - | +11.00 | 1.0 |" in output
    assert "1 of 7 runs are not tested" in output


def test_runs_under_way_enter_no_mean(runs, capsys):
    before = rows_of(runs)
    write_run(runs / "b-guided-7", 7, 2.5, val_top1=(1.0, 99.0))
    write_run(runs / "d-empty", 0, 5.0, val_top1=())
    *after, empty = rows_of(runs)
    told = ("run", "setting", "runs", "so_far")
    assert [{k: v for k, v in row.items() if k not in told} for row in after] == [
        {k: v for k, v in row.items() if k not in told} for row in before
    ]
    assert [row["so_far"] for row in after] == [None, 99.0]
    assert (empty["trained"], empty["val_score"], empty["so_far"], empty["difference"]) == (0, None, None, None)
    assert main([str(runs)]) == 0
    output = capsys.readouterr().out
    assert "| run | setting | runs | so far | validation |" in output
    assert "| b-guided-* | guidance.weight=2.5 | 3/4 | 99.00 | 50.00 ± 0.00 |" in output
    assert "2 of 8 runs are not at their last epoch" in output


def test_table_csv_and_curves_are_written(runs, tmp_path, capsys):
    table, curves = tmp_path / "new" / "table.csv", tmp_path / "curves.png"
    assert main([str(runs), "--csv", str(table), "--plot", str(curves)]) == 0
    line = capsys.readouterr().out.splitlines()[3]
    p_value = ttest_rel(GUIDED, BASE).pvalue
    assert line.startswith(
        "| b-guided-* | guidance.weight=2.5 | 3 | 50.00 ± 0.00 | 43.83 ± 2.75 | 42.83 ± 2.75 | +11.33 "
    )
    assert f"({p_value:.2g})" in line
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["guidance.weight"]) for row in rows] == [0, 2.5]
    assert [float(row["test_top1"]) for row in rows] == pytest.approx([statistics.mean(BASE), statistics.mean(GUIDED)])
    assert curves.read_bytes().startswith(b"\x89PNG")


def test_a_plot_of_an_unknown_kind_is_refused(runs, tmp_path, capsys):
    assert main([str(runs), "--plot", str(tmp_path / "curves.xyz")]) == 2
    assert f"--plot: cannot write {tmp_path}/curves.xyz: Format 'xyz' is not supported" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "together"),
    [(["a"], "a"), (["a-seed1", "a-seed2"], "a-seed*"), (["one", "two", "three"], "one and 2 more")],
)
def test_the_folders_of_a_setting_have_one_name(tmp_path, names, together):
    assert Setting({}, [read_run(write_run(tmp_path / name, 0, 0.0)) for name in names]).folders == together


def test_a_last_line_that_is_being_written_is_left_out(runs):
    before = rows_of(runs)
    summary = runs / "a-base-0" / "summary.csv"
    summary.write_text(summary.read_text() + "5,99")
    assert rows_of(runs) == before


@pytest.mark.parametrize("line", ["2,50.0", "x,50.0,30", "2,,", "2,fifty,30", "\0", "2,\xff,3"])
def test_a_damaged_line_is_named(runs, capsys, line):
    summary = runs / "a-base-0" / "summary.csv"
    lines = summary.read_text().splitlines()
    summary.write_text("\n".join([*lines[:2], line, *lines[3:]]) + "\n")
    assert main([str(runs)]) == 2
    assert f"error: {summary} is damaged: line 3 is no row of an epoch" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"test_top_1": 1.0}, "unknown figure 'test_top_1'"),
        ({"val_top1": None}, "val_top1: expected float, got None"),
        ({"best_epoch": "2"}, "best_epoch: expected int, got '2'"),
        (["run_dir"], "run_dir is missing"),
        (None, "expected a mapping of figures, got list"),
        ("{", "Expecting property name"),
    ],
)
def test_a_damaged_result_is_named(runs, capsys, change, reason):
    path = runs / "b-guided-1" / "result.json"
    tree = json.loads(path.read_text())
    if isinstance(change, dict):
        tree |= change
    elif isinstance(change, list):
        del tree[change[0]]
    path.write_text(change if isinstance(change, str) else json.dumps(tree if change else []))
    assert main([str(runs)]) == 2
    err = capsys.readouterr().err
    assert f"error: {path} is damaged ({reason}" in err and err.count("\n") == 1
    assert f"python -m lgfast.train --resume {path.parent}" in err


def test_keys_that_change_no_result_do_not_part_runs(tmp_path):
    for seed in range(2):
        folder = write_run(tmp_path / str(seed), seed, 0.0, BASE[seed])
        config = folder / "config.yaml"
        config.write_text(config.read_text().replace("workers: ", f"workers: {seed + 3}  # was "))
    (row,) = rows_of(tmp_path)
    assert (row["setting"], row["runs"]) == ("all runs", 2)


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_a_place_without_runs_is_named(tmp_path, capsys, name):
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / name)]) == 2
    assert str(tmp_path / name) in capsys.readouterr().err
