"""The page of a run: it stands alone, says what the run's files say, and sorts its classes in a browser."""

import json
import re
import shutil
import subprocess
import warnings
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from lgfast import report, train
from lgfast.assembly.images import load_images
from lgfast.assembly.loaders import eval_loader
from lgfast.assembly.networks import build_student
from lgfast.assembly.teachers import load_teacher
from lgfast.attention_distance import checkpoint_distances
from lgfast.config import replace, to_dict
from lgfast.fusion import unfuse
from lgfast.inference.attention import attention_distances
from lgfast.records.checkpoint import CheckpointStore
from lgfast.records.result import read_result
from lgfast.records.run_config import read_config
from lgfast.records.run_log import read_rows
from lgfast.reports.run_attention import read_attention
from lgfast.reports.run_page import guidance, write_run_page
from lgfast.reports.run_report import write_run_report, write_run_report_or_warn
from tests.runs import metrics, small_loop, tiny_config

pytest.importorskip("matplotlib")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(HTMLParser):
    """Titles, texts of cells by table, addresses of what is loaded or linked, and tags."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.addresses, self.tags, self.text = [], [], set(), ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset", "action")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        self.is_cell = tag in ("td", "th")

    def handle_endtag(self, tag):
        self.is_cell = False

    def handle_data(self, data):
        self.text += data
        if getattr(self, "is_cell", False):
            self.tables[-1][-1][-1] += data.strip()

    def table(self, title):
        return next(table for table in self.tables if table[0][0] == title)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A guided run by the command line, whose guidance ended after its first epoch."""
    folder = tmp_path_factory.mktemp("page")
    config = tiny_config(folder, **{"guidance.stop": "epoch:1", "log.report": True, "eval.every_epochs": 1})
    (folder / "run.yaml").write_text(json.dumps(to_dict(config)))
    assert train.main(["--config", str(folder / "run.yaml")]) == 0
    return Path(config.run_dir)


@pytest.fixture
def page(run):
    return Page((run / "index.html").read_text())


def test_nothing_is_loaded_from_elsewhere(run, page):
    assert page.addresses and all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert not page.tags & {"link", "iframe", "object", "base", "form"}
    text = re.sub(r"base64,[^\"]*", "", (run / "index.html").read_text())
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttp", text)


def test_it_says_what_the_files_say(run, page):
    result, scores = read_result(run), json.loads((run / "test" / "scores.json").read_text())
    assert (
        f"student {result.test_top1:.2f} %" in page.text and f"Epoch {result.best_epoch}, chosen by top1" in page.text
    )
    rows = {row[0]: row[1:] for row in page.table("score")[1:]}
    assert rows["top-1 (%)"][0] == f"{result.test_top1:.2f}"
    assert rows["macro-F1 (%)"] == [f"{scores['macro_f1'][name]:.2f}" for name in ("value", "low", "high")]
    classes = page.table("class")
    assert [row[0] for row in classes[1:]] == [str(digit) for digit in range(10)]
    assert sum(int(row[4]) for row in classes[1:]) == 60
    settings = dict(page.table("key")[1:])
    assert settings["guidance.stop"] == "epoch:1" and settings["data.train_limit"] == "120"
    assert "ended after epoch 1, 67% of its cost saved" in page.text
    assert f"torch {torch.__version__}" in page.text and "60 images of digits, test" in page.text


def test_the_attention_beside_the_trained_is_that_of_the_network_it_began_as(run, tmp_path):
    found = read_attention(run / "test" / "attention.csv")
    assert list(found) == ["trained", "before training"]
    trained = checkpoint_distances(str(run), 60, device="cpu")
    assert trained.keys() == found["trained"].keys() == found["before training"].keys()
    for name, layer in trained.items():
        assert found["trained"][name].heads == pytest.approx(layer.heads, rel=1e-5)
    loop = small_loop(tiny_config(tmp_path, **{"guidance.weight": 0}))
    batches = [batch.images for batch in loop.selection]
    initial = attention_distances(loop.lanes[0].step.model, batches)  # before its first step, on other images
    for name, layer in initial.items():
        assert found["before training"][name].heads == pytest.approx(layer.heads, rel=0.02)


def test_distances_to_the_teachers_features_are_those_of_plain_torch(run, page):
    """The maps are projected and resized as in the guidance loss, on the first 60 test images."""
    config = replace(read_config(run), {"precision": "fp32"})
    images = load_images(config, "test")
    teacher = load_teacher(config, Path(read_result(run).teacher_run), images, torch.device("cpu"))
    student = build_student(config, 10, teacher)
    weights, state = CheckpointStore(run).load_newest()
    student.model.load_state_dict(weights)
    student.guidance.load_state_dict(state["guidance"])
    unfuse(student.model.eval())
    tokens = []
    for block in student.model.blocks:
        block.register_forward_hook(lambda module, args, output: tokens.append(output))
    batches = eval_loader(config, images, torch.device("cpu"))  # of 8x8 pixels, as the teacher's input is
    batch = torch.cat([batch.images for batch in batches])
    with torch.no_grad():
        student.model(batch)
        theirs = teacher.outputs(batch).maps
        expected = []
        for project, token, their in zip(student.guidance.projections, tokens, theirs, strict=True):
            own = project(token[:, -16:]).transpose(1, 2).unflatten(2, (4, 4))
            side = (max(4, their.shape[2]),) * 2
            own, their = (F.interpolate(maps.double(), side, mode="bilinear") for maps in (own, their))
            expected.append(float(F.mse_loss(own, their) / their.square().mean()))
    rows = page.table("student's block")[1:]
    assert [row[:2] for row in rows] == [["0", "0"], ["1", "1"], ["2", "2"]]
    assert [float(row[2]) for row in rows] == pytest.approx(expected, abs=1e-3)


def test_a_run_under_way_has_a_page(run, tmp_path):
    for name in ("config.yaml", "metrics.jsonl", "environment.json"):
        shutil.copy(run / name, tmp_path / name)
    page = Page(write_run_page(tmp_path).read_text())
    assert "Not finished: 3 of 3 epochs." in page.text and f"lgfast train --resume {tmp_path}" in page.text
    assert len(page.addresses) == 1


def test_pages_are_written_anew_without_the_images_and_from_the_command_line(run, tmp_path, capsys, monkeypatch):
    folder = shutil.copytree(run, tmp_path / "copy")
    before = (folder / "test" / "mistakes.png").read_bytes()
    (folder / "index.html").unlink()
    with monkeypatch.context() as patch:
        patch.setattr("lgfast.reports.answers.load_images", lambda *_: (_ for _ in ()).throw(FileNotFoundError("gone")))
        assert report.main([str(folder), "--html"]) == 0
    assert str(folder / "index.html") in (said := capsys.readouterr().out)
    assert "copy: guidance ended after epoch 1 of 3, 67% of its cost saved" in said
    assert (folder / "test" / "mistakes.png").read_bytes() == before
    assert Page((folder / "index.html").read_text()).table("class")


def test_without_matplotlib_the_rest_stands(run, tmp_path, monkeypatch):
    folder = shutil.copytree(run, tmp_path / "copy")
    monkeypatch.setattr("lgfast.reports.run_pictures.new_figure", lambda *_: (_ for _ in ()).throw(ImportError()))
    page = Page(write_run_page(folder).read_text())
    assert "pip install 'lgfast[plot]'" in page.text and page.table("class")


@pytest.mark.parametrize("name", ["scores.json", "attention.csv", "features.csv"])
def test_a_damaged_file_of_a_report_is_named(run, tmp_path, name):
    folder = shutil.copytree(run, tmp_path / "copy")
    (folder / "test" / name).write_text("[1]\n[2]\n")
    with pytest.raises(ValueError, match=rf"{name} is damaged .*; delete it, then: lgfast report --html {folder}"):
        write_run_page(folder)


def test_a_damaged_record_of_the_machine_is_left_out(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "copy")
    (folder / "environment.json").write_text("null")
    assert "hardware" not in Page(write_run_page(folder).read_text()).text


def test_a_report_that_cannot_be_written_fails_no_run(run, tmp_path, monkeypatch):
    with pytest.warns(UserWarning, match="the run is complete, but not its report: could not read"):
        monkeypatch.setattr(
            "lgfast.reports.run_report.write_run_page", lambda _: (_ for _ in ()).throw(OSError("could not read it"))
        )
        write_run_report_or_warn(run)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.undo()
        assert write_run_report(run) == run / "index.html"


def test_unguided_runs_say_so(tmp_path):
    assert guidance(tiny_config(tmp_path, **{"guidance.weight": 0}), None) == "none"


SORT = """
<script>
const table = document.querySelector("table.sortable"), titles = [...table.rows[0].cells];
const column = index => [...table.rows].slice(1).map(row => row.cells[index].textContent.trim());
const seen = {before: column(0)};
titles[2].click(); seen.recall = column(2); titles[2].click(); seen.up = column(2);
titles[0].click(); seen.names = column(0); seen.errors = window.problems;
seen.pictures = [...document.images].map(image => image.naturalWidth);
seen.loaded = performance.getEntriesByType("resource").filter(one => !one.name.startsWith("data:")).length;
document.body.innerHTML = ""; document.body.textContent = JSON.stringify(seen);
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
def test_a_browser_loads_it_without_a_request_and_sorts(run, tmp_path):
    text = (run / "index.html").read_text()
    listen = "<script>window.problems = []; onerror = text => { problems.push(text) }</script>"
    (tmp_path / "page.html").write_text(text.replace("<style>", f"{listen}<style>", 1).replace("</html>", SORT))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    done = subprocess.run(
        [*command, "--virtual-time-budget=2000", "--dump-dom", f"file://{tmp_path}/page.html"],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    seen = json.loads(re.search(r'\{"before".*\}', done.stdout).group())
    numbers = [float(text) for text in seen["recall"]]
    assert numbers == sorted(numbers, reverse=True) and seen["up"] == [f"{n:.2f}" for n in sorted(numbers)]
    assert seen["names"] == sorted(seen["before"], reverse=True)
    assert seen["errors"] == [] and seen["loaded"] == 0 and all(width > 100 for width in seen["pictures"])


def test_rows_of_the_log_are_read(run):
    assert [row["epoch"] for row in read_rows(run, "epoch")] == [1, 2, 3]
    assert len(read_rows(run, "train")) == sum(row["kind"] == "train" for row in metrics(run))
