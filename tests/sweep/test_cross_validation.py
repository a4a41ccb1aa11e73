"""Cross-validation of a folder of pictures: every image is tested once, by the run that did not train on it."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score

import lgfast
from lgfast.__main__ import main as lgfast_main
from lgfast.assembly.images import load_splits
from lgfast.config import load_recipe, load_yaml, replace
from lgfast.evaluate import evaluate_checkpoint
from lgfast.records.answers import read_answers
from lgfast.records.checkpoint import CheckpointError
from lgfast.runtime.interrupt import Interrupted, InterruptFlag
from lgfast.sweep.folds import run_folds
from lgfast.train import main
from tests.test_evaluate import COLOURS

SMALL = {
    "guidance.weight": 0, "augment.image_size": 16, "augment.teacher_size": 8, "model.embed_dim": 32, "model.depth": 2,
    "model.num_heads": 2, "data.batch_size": 8, "epochs": 2, "min_steps": 10, "log.tensorboard": "false",
    "device": "cpu", "precision": "fp32",
}  # fmt: skip


def words(changes):
    return [text for key, value in changes.items() for text in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def plants(tmp_path_factory):
    """Three classes of 18 pictures, three of each plant, in folders without parts."""
    root = tmp_path_factory.mktemp("plants")
    for name, colour in COLOURS.items():
        (root / name).mkdir()
        for i in range(18):
            pixels = np.full((20, 20, 3), colour, np.uint8) + np.uint8(i)
            Image.fromarray(pixels).save(root / name / f"{name}{i // 3}_{i}.png")
    return root


@pytest.fixture(scope="module")
def validated(plants, tmp_path_factory):
    out = tmp_path_factory.mktemp("folds") / "run"
    changes = SMALL | {"data.root": plants, "run_dir": out, "data.group": r"([a-z]+\d+)_"}
    assert main(["--recipe", "photos-base", "--folds", "3", *words(changes)]) == 0
    return out, changes


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_image_is_tested_once_and_groups_stay_together(validated, plants):
    found = rows(validated[0] / "predictions.csv")
    assert sorted(row["file"] for row in found) == sorted(str(path) for path in plants.glob("*/*.png"))
    folds = {}
    for row in found:
        folds.setdefault(row["file"].rpartition("_")[0], set()).add(row["fold"])
    assert len(folds) == 18 and all(len(numbers) == 1 for numbers in folds.values())


def test_what_a_fold_says_is_what_its_run_says_of_its_test_images(validated):
    out, _ = validated
    found, told = rows(out / "predictions.csv"), rows(out / "folds.csv")
    assert [row["fold"] for row in told] == ["1", "2", "3"]
    for row in told:
        own = [(line["class"], line["named"]) for line in found if line["fold"] == row["fold"]]
        accuracy = 100 * accuracy_score(*zip(*own, strict=True))
        assert float(row["test_top1"]) == pytest.approx(accuracy)
        run_dir = out / f"fold-{row['fold']}"
        assert evaluate_checkpoint(str(run_dir), device="cpu")["top1"] == pytest.approx(accuracy)
        with (run_dir / "images.csv").open(newline="") as file:
            parts = {line["file"]: line["part"] for line in csv.DictReader(file)}
        tested = {line["file"] for line in found if line["fold"] == row["fold"]}
        assert {name for name, part in parts.items() if part == "test"} == tested and len(parts) == 54
    together = read_answers(out / "out-of-fold")
    assert len(together.labels) == 54 and list(together.files) == [row["file"] for row in found]
    scores = json.loads((out / "out-of-fold" / "scores.json").read_text())
    assert scores["images"] == 54


def test_its_folder_is_the_mean_of_its_networks(validated, plants, capsys):
    out, _ = validated
    paths = sorted(plants.glob("*/*_0.png"))
    folds = [lgfast.load(out / f"fold-{number}", "cpu") for number in (1, 2, 3)]
    pictures = [np.asarray(Image.open(path)) for path in paths]
    mean = torch.stack([network.probabilities(pictures) for network in folds]).mean(0)
    torch.testing.assert_close(lgfast.load(out, "cpu").probabilities(pictures), mean)
    found = lgfast.predict(out, paths)
    assert [row.label for row in found] == [folds[0].class_names[label] for label in mean.argmax(1)]
    assert lgfast_main(["export", str(out), "--format", "hf"]) == 2
    assert "--format hf: holds one network" in capsys.readouterr().err and not (out / "model-hf").exists()
    assert lgfast_main(["evaluate", str(out)]) == 2
    assert f"are in {out}/out-of-fold; or name one of them, {out}/fold-1" in capsys.readouterr().err


def test_its_page_shows_all_images_and_links_the_folds(validated):
    page = (validated[0] / "index.html").read_text()
    assert all(f'<a href="fold-{number}/index.html">{number}</a>' in page for number in (1, 2, 3))
    assert (validated[0] / "fold-3" / "index.html").is_file()
    accuracy = read_answers(validated[0] / "out-of-fold").is_hit.mean()
    assert f"54 images, each tested by the run that did not train on it: {100 * accuracy:.2f} %" in page
    assert "54 images of 3 folds" in page
    wrong = rows(validated[0] / "out-of-fold" / "mistakes.csv")
    assert (validated[0] / "out-of-fold" / "mistakes.png").is_file() is bool(wrong)


def test_one_that_is_not_complete_gives_no_network(validated, tmp_path):
    shutil.copytree(validated[0] / "fold-1", tmp_path / "cross" / "fold-1")
    with pytest.raises(CheckpointError, match="holds a cross-validation that is not complete; run its command again"):
        lgfast.load(tmp_path / "cross")


def test_the_same_command_goes_on_and_a_finished_one_trains_nothing(validated, capsys, monkeypatch):
    out, changes = validated
    before = {path: path.stat().st_mtime_ns for path in out.glob("fold-*/best.safetensors")}
    (out / "folds.csv").unlink()
    assert main(["--recipe", "photos-base", "--folds", "3", *words(changes)]) == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("fold-*/best.safetensors")} == before
    assert len(rows(out / "folds.csv")) == 3
    assert "54 images, each tested once" in capsys.readouterr().out


def test_stopped_it_names_the_folder_to_go_on_in(tmp_path, monkeypatch):
    """A single fold could continue by its own command, which would leave the other folds out."""

    def stop(run, **_):
        raise Interrupted(f"stopped and saved as {run.run_dir}", "continue with: that fold alone")

    monkeypatch.setattr("lgfast.sweep.folds.train_run", stop)
    config = replace(load_recipe("photos-base"), {"run_dir": str(tmp_path)})
    with pytest.raises(Interrupted) as found:
        run_folds(config, 3, InterruptFlag())
    saved, way_on = str(found.value).split("; ")
    assert saved == f"fold 1 of 3 stopped and saved as {tmp_path}/fold-1"
    assert way_on == f"continue with the same command and --run-dir {tmp_path}"


def test_the_holdout_keeps_groups_together(validated, plants):
    splits = load_splits(load_yaml(validated[0] / "fold-1" / "config.yaml"))
    plant = [
        {str(path).rpartition("_")[0] for path in images.paths} for images in (splits.train, splits.select, splits.test)
    ]
    assert not (plant[0] & plant[1] or plant[0] & plant[2] or plant[1] & plant[2]) and all(plant)


def test_without_folds_the_test_part_keeps_groups_together(plants):
    config = replace(load_recipe("photos-base"), {"data.root": str(plants), "data.group": r"([a-z]+\d+)_"})
    splits = load_splits(config)
    seen = {str(path).rpartition("_")[0] for images in (splits.train, splits.select) for path in images.paths}
    tested = {str(path).rpartition("_")[0] for path in splits.test.paths}
    assert tested and not seen & tested and len(seen | tested) == 18


def test_a_group_in_both_parts_of_a_folder_is_refused(tmp_path):
    for part, numbers in (("train", (1, 2)), ("test", (2, 3))):
        for name in ("bee", "cat"):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for number in numbers:
                Image.new("RGB", (8, 8)).save(folder / f"{name}{number}_0.png")
    config = replace(load_recipe("photos-base"), {"data.root": str(tmp_path), "data.group": r"([a-z]+\d+)_"})
    with pytest.raises(ValueError, match=r"data.group: 2 groups are in .* \(bee2; cat2\), so the test would know them"):
        load_splits(config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--folds", "1"], "--folds: expected at least 2, got 1"),
        (["--folds", "2", "--set", "data.folds=2"], "--folds: data.folds is set too"),
        (["--set", "data.folds=1"], "data.folds: expected 0 or at least 2, got 1"),
        (["--set", "data.folds=3", "--set", "data.fold=3"], "data.fold: expected 0 to 2 of 3 folds, got 3"),
        (["--set", "data.group=("], "data.group: '(' is no regular expression"),
        (["--set", "data.group=x"], "data.group: digits-"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["--recipe", "digits-base", "--set", "data.train_limit=0", "--device", "cpu", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "runs").exists()
