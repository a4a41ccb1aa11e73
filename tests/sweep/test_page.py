"""The page of a sweep: what it says and that it stands alone. No training here."""

from html.parser import HTMLParser

import pytest

from lgfast.config import load_recipe, replace
from lgfast.sweep.page import write_page
from lgfast.sweep.plots import MISSING, positions
from lgfast.sweep.results import write_results
from lgfast.sweep.space import read_space
from lgfast.sweep.study import Plan, Study

pytest.importorskip("matplotlib")
BASE = load_recipe("digits")


class Reader(HTMLParser):
    """Rows of the table, the text, and every attribute that could load something."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.text, self.sources, self.tags = [], "", [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag == "tr":
            self.rows.append((dict(attrs).get("class"), []))
        elif tag in ("td", "th"):
            self.rows[-1][1].append([dict(attrs).get("class"), ""])

    def handle_data(self, data):
        self.text += data
        if self.rows and self.lasttag in ("td", "th"):
            self.rows[-1][1][-1][1] += data.strip("\n")


def write(tmp_path, assignments, top1, base=BASE, test=None):
    """The page of a finished grid.

    Args:
        top1: validation accuracy of each setting; an error instead for one that failed.
    """
    study = Study(str(tmp_path / "study.journal"), "test")
    study.create(Plan(base, read_space(assignments, None, base), None, "none", 8))
    study.announce()
    while runs := study.claim():
        for run in runs:
            value = top1[run.setting]
            if isinstance(value, str):
                study.fail(run.trial, value)
            else:
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
    assert [text for _, text in header] == ["setting", "val top-1 (%)", "seeds", "state", "optim.lr", "optim.name"]
    assert [kind for kind, _ in header] == ["number", "number", "number", None, "number", None]
    assert all([kind for kind, _ in cells] == [kind for kind, _ in header] for _, cells in rows)
    assert [mark for mark, _ in rows] == ["best", None, None, None]
    assert [text for _, text in rows[0][1]] == ["2", "62.50", "1/1", "complete", "0.002", "adamw"]


def test_names_and_values_are_text_whatever_they_hold(tmp_path):
    name = '<script>alert("A & B")</script>'
    base = replace(BASE, {"name": name})
    page = write(tmp_path, ["data.root=<i>a</i>,$x_{$"], [40.0, 50.0], base)  # an open formula for matplotlib
    assert f"Sweep of {name}" in page.text
    assert {cells[4][1] for _, cells in page.rows[1:]} == {"<i>a</i>", "$x_{$"}
    assert not page.tags & {"script", "i", "link"}
    assert len(page.sources) == 2 and all(source.startswith("data:image/png;base64,") for source in page.sources)


def test_a_single_setting_has_nothing_to_compare(tmp_path):
    page = write(tmp_path, ["optim.lr=1e-3"], [40.0])
    assert len(page.sources) == 1 and "Validation accuracy over epochs" in page.text


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


def test_settings_without_a_key_lie_below_its_values():
    heights, labels = positions([0.9, None, 0.5])
    assert heights == [1.0, MISSING, 0.0] and labels == {"0.5": 0.0, "0.9": 1.0, "-": MISSING}
    assert MISSING < 0
