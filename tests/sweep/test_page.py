"""The page of a sweep: what it says and that it stands alone. No training here."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from lgfast.config import load_recipe, replace
from lgfast.records.run_config import write_config
from lgfast.reports.spread import Spread
from lgfast.sweep.page import write_page
from lgfast.sweep.plots import MISSING, plot_heat_map, positions
from lgfast.sweep.results import SettingRow, write_results
from lgfast.sweep.space import Axis, read_space
from lgfast.sweep.study import Plan, Study

pytest.importorskip("matplotlib")
BASE = load_recipe("digits")
ENVIRONMENT = {"gpu": None, "cpu": "Some CPU", "cpu_threads": 2, "platform": "Linux", "torch": "2.x", "lgfast": "0.x"}


class Reader(HTMLParser):
    """Rows of the tables (settings, runs), the text, what is loaded, and what is linked."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.text, self.sources, self.links, self.tags = [], "", [], [], set()
        self.feed(text)

    @property
    def rows(self):
        return self.tables[0]

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.sources += [value for name, value in attrs if name == "src"]
        self.links += [value for name, value in attrs if name == "href"]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append((dict(attrs).get("class"), []))
        elif tag in ("td", "th"):
            self.tables[-1][-1][1].append([dict(attrs).get("class"), ""])

    def handle_data(self, data):
        self.text += data
        if self.tables and self.lasttag in ("td", "th", "a") and data.strip():
            self.tables[-1][-1][1][-1][1] += data.strip("\n")


def write(tmp_path, assignments, top1, base=BASE, test=None):
    """The page of a finished grid.

    Args:
        top1: validation accuracy of each setting; an error instead for one that failed.
    """
    study = Study(str(tmp_path / "study.journal"), "test")
    study.create(Plan(base, read_space(assignments, None, base), None, "none", 8))
    study.fill()
    study.announce()
    while runs := study.claim():
        for run in runs:
            value = top1[run.setting]
            if isinstance(value, str):
                study.fail(run.trial, value)
            else:
                folder = tmp_path / "runs" / f"{run.setting:03d} seed{run.seed}"
                folder.mkdir(parents=True)
                (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
                run.trial.set_user_attr("result", {"seconds": 90.0, "run_dir": str(folder)})
                run.trial.report(value, 1)
                study.complete(run.trial, value)
    study.heartbeat.stop()
    if test:
        study.optuna.set_user_attr("test", test)
    write_page(study, *write_results(study, tmp_path), tmp_path)
    return Reader((tmp_path / "index.html").read_text(encoding="utf-8"))


def test_table_marks_the_best_row_and_aligns_numbers_right(tmp_path):
    page = write(tmp_path, ["optim.lr=1e-3,2e-3", "optim.name=adamw,sgd"], [40.0, 41.0, 62.5, 30.0])
    (_, header), *rows = page.rows
    assert [text for _, text in header] == ["setting", "validation (%)", "seeds", "state", "optim.lr", "optim.name"]
    assert [kind for kind, _ in header] == ["number", "number", "number", None, "number", None]
    assert all([kind for kind, _ in cells] == [kind for kind, _ in header] for _, cells in rows)
    assert [mark for mark, _ in rows] == ["best", None, None, None]
    assert [text for _, text in rows[0][1]] == ["2", "62.50", "1/1", "complete", "0.002", "adamw"]


def test_names_and_values_are_text_whatever_they_hold(tmp_path):
    name = '<script>alert("A & B")'
    base = replace(BASE, {"name": name})
    page = write(tmp_path, ["teacher.cache=<i>a</i>,$x_{$"], [40.0, 50.0], base)  # an open formula for matplotlib
    assert f"Sweep of {name}" in page.text
    assert {cells[4][1] for _, cells in page.rows[1:]} == {"<i>a</i>", "$x_{$"}
    assert not page.tags & {"script", "i", "link"}
    assert len(page.sources) == 2 and all(source.startswith("data:image/png;base64,") for source in page.sources)


def test_a_single_setting_has_nothing_to_compare(tmp_path):
    page = write(tmp_path, ["optim.lr=1e-3"], [40.0])
    assert len(page.sources) == 1 and "Validation accuracy over epochs" in page.text


def test_page_says_what_was_run_when_and_where_and_links_the_runs(tmp_path):
    page = write(tmp_path, ["optim.lr=1e-3,2e-3", "seed=0,1"], [40.0, 50.0])
    assert "digits at 16 px" in page.text and "Some CPU, 2 threads; torch 2.x, lgfast 0.x" in page.text
    assert re.search(r"date\s*20\d\d-\d\d-\d\d \d\d:\d\d to 20\d\d-", page.text)
    header, *rows = [[text for _, text in cells] for _, cells in page.tables[1]]
    assert header == ["setting", "seed", "state", "validation (%)", "epochs", "time", "folder"]
    assert rows[1] == ["0", "1", "complete", "40.00", "1", "2 min", "000 seed1"]
    assert len(page.links) == 4 and all((tmp_path / unquote(link)).is_dir() for link in page.links)


@pytest.mark.parametrize("report", [True, False])
def test_a_complete_run_gets_a_page_that_is_linked_unless_it_reports_nothing(tmp_path, report):
    folder = tmp_path / "runs" / f"000 seed{BASE.seed}"
    folder.parent.mkdir()
    place = tmp_path / "kept"
    place.mkdir()
    write_config(place, replace(BASE, {"run_dir": str(folder), "log.report": report}))
    config = (place / "config.yaml").read_bytes()
    real = Path.mkdir

    def mkdir(path, *args, **options):  # a run's folder has its configuration from the beginning
        real(path, *args, **options)
        if path == folder:
            (path / "config.yaml").write_bytes(config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "mkdir", mkdir)
        page = write(tmp_path, ["optim.lr=1e-3,2e-3"], [40.0, 50.0])
    pages = [tmp_path / unquote(link) for link in page.links]
    assert pages[0] == (folder / "index.html" if report else folder) and pages[1].is_dir()
    assert not report or "Not finished: 0 of" in pages[0].read_text()


def test_two_keys_make_a_heat_map_and_an_importance(tmp_path):
    page = write(tmp_path, ["optim.lr=1e-3,2e-3", "guidance.weight=0,1"], [40.0, 41.0, 52.5, 50.0])
    assert len(page.sources) == 4
    assert "Validation accuracy (%) by optim.lr and guidance.weight. In brackets" in page.text
    assert "exact over the whole grid" in page.text


def test_failures_come_with_their_reason(tmp_path):
    page = write(tmp_path, ["optim.lr=1e-3,2e-3,3e-3"], [40.0, "ValueError: not finite", "ValueError: not finite"])
    seed = BASE.seed
    assert f"failed: setting 1 seed {seed}, 2 seed {seed}: ValueError: not finite" in page.text


@pytest.mark.parametrize(("setting", "is_shown"), [(1, True), (0, False)])
def test_a_test_result_of_another_setting_is_not_the_winners(tmp_path, setting, is_shown):
    test = {"setting": setting, "top1": [71.25], "mean": 71.25, "spread": 0.0}
    page = write(tmp_path, ["optim.lr=1e-3,2e-3"], [40.0, 50.0], test=test)
    assert "Best: setting 1" in page.text
    assert ("test 71.25 %" in page.text) is is_shown


@pytest.mark.parametrize(
    ("changes", "is_grid"),
    [
        ([{"optim.lr": lr, "optim.name": name} for lr in (1e-3, 2e-3) for name in ("a", "b")], True),
        ([{"optim.lr": lr, "optim.name": "a"} for lr in (1e-3, 1.5e-3, 2e-3)] + [{"optim.name": "b"}], True),
        ([{"optim.lr": i * 1e-3, "optim.name": f"<b>{i}"} for i in range(1, 9)], False),
    ],
)
def test_heat_map_has_cells_where_values_make_a_grid(tmp_path, changes, is_grid):
    settings = [
        SettingRow(
            n, own, ("complete",) if n else ("pruned",), Spread(50.0 + n if n else None, None), None if n else 9.0
        )
        for n, own in enumerate(changes)
    ]
    axes = Axis("optim.lr", low=1e-3, high=1e-2, log=True), Axis("optim.name", ("a", "b"))
    path, has_cells = plot_heat_map(settings, *axes, tmp_path / "heat_map.png")
    assert has_cells is is_grid and path.read_bytes().startswith(b"\x89PNG")


def test_settings_without_a_key_lie_below_its_values():
    heights, labels = positions([0.9, None, 0.5])
    assert heights == [1.0, MISSING, 0.0] and labels == {"0.5": 0.0, "0.9": 1.0, "-": MISSING}
    assert MISSING < 0
