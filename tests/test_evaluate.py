"""Evaluation of a run on other folders: classes are known by their names."""

import csv
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from lgfast.assembly.run import train_run
from lgfast.evaluate import evaluate_checkpoint, main
from lgfast.models import create_model
from lgfast.records.checkpoint import CheckpointError, read_weights, save_weights
from tests.models.pycls_files import pyth_state, resnet_names, save
from tests.runs import tiny_config

COLOURS = {"ant": (200, 30, 30), "bee": (30, 200, 30), "cat": (30, 30, 200)}


def write_colours(root, parts, classes=COLOURS, count=12):
    """Images of a class have one colour, which a network learns in a few steps."""
    for part in parts:
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                colour = tuple(value + i for value in COLOURS.get(name, (90, 90, 90)))
                Image.new("RGB", (8, 8), colour).save(root / part / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that tells the three colours apart."""
    folder = tmp_path_factory.mktemp("colours")
    changes = {
        "data.dataset": "folder",
        "data.root": str(write_colours(folder / "images", ("train", "test"))),
        "data.train_limit": 0,
        "data.test_limit": 0,
        "data.batch_size": 8,
        "guidance.weight": 0,
        "model.drop_path_rate": 0,
        "epochs": 10,
        "optim.warmup_epochs": 0,
    }
    config = tiny_config(folder, **changes)
    assert train_run(config).test_top1 == 100
    return config.run_dir


@pytest.mark.parametrize("classes", [("ant", "bee", "cat"), ("bee", "cat"), ("cat",)])
def test_a_test_folder_alone_is_judged_by_the_names_of_its_classes(run, tmp_path, classes):
    scores = evaluate_checkpoint(run, root=str(write_colours(tmp_path, ("test",), classes)))
    assert scores["images"] == 12 * len(classes)
    assert scores["top1"] == 100


def test_what_a_network_gets_wrong_is_kept_beside_the_run(run, tmp_path, capsys):
    root = write_colours(tmp_path / "images", ("test",))
    for name, place in (("ant", "bee"), ("bee", "cat")):  # an image in another class's folder is a mistake
        (root / "test" / name / "0.png").rename(root / "test" / place / "moved.png")
    assert main([run, "--root", str(root), "--out", str(tmp_path / "out")]) == 0
    recalls = (11 / 11, 11 / 12, 12 / 13)
    assert f"balanced accuracy    {100 * sum(recalls) / 3:.2f} %" in capsys.readouterr().out
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} >= {"scores.json", "classes.csv", "confusion.csv", "logits.npz"}
    with (out / "mistakes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(Path(row["file"]).parent.name, row["named"], row["class"]) for row in rows} == {
        ("bee", "ant", "bee"),
        ("cat", "bee", "cat"),
    }
    assert Image.open(out / "mistakes.png").getpixel((60, 60)) in {(200, 30, 30), (30, 200, 30)}
    assert not (Path(run) / "test" / "mistakes.png").exists()  # other images than the run's own


def test_a_run_folder_gets_the_answers_for_its_own_images(run, capsys):
    assert main([run]) == 0
    found = json.loads((Path(run) / "test" / "scores.json").read_text())
    assert found["images"] == 36 and found["top1"]["value"] == 100
    assert "36 images of folder, test" in (Path(run) / "index.html").read_text()
    assert main([f"{run}/best.safetensors"]) == 0
    assert "are in" not in capsys.readouterr().out.splitlines()[-1]


def test_the_old_name_of_the_run_works_with_a_word_about_the_new_one(run, capsys):
    assert main(["--checkpoint", f"{run}/best.safetensors"]) == 0
    old = capsys.readouterr()
    assert old.err == "--checkpoint is deprecated: lgfast evaluate RUN takes the run by position\n"
    assert main([f"{run}/best.safetensors"]) == 0
    assert capsys.readouterr() == (old.out, "")
    for arguments, count in (([], "none"), ([run, "--checkpoint", run], "two")):
        assert main(arguments) == 2
        assert f"RUN: expected one run folder or weights file, got {count}" in capsys.readouterr().err


def test_classes_that_were_not_trained_are_refused(run, tmp_path):
    root = write_colours(tmp_path, ("train", "test"), ("bee", "cat", "dog"))
    message = r"was trained for 3 classes, folder in .* has 3 \(not known: dog\); pass --dataset and --root"
    with pytest.raises(CheckpointError, match=message):
        evaluate_checkpoint(run, root=str(root))
    shutil.rmtree(root / "train")
    with pytest.raises(CheckpointError, match=message):
        evaluate_checkpoint(run, root=str(root))


def test_another_order_of_the_same_classes_is_mapped(run, tmp_path, monkeypatch):
    root = write_colours(tmp_path, ("test",))
    monkeypatch.setattr("lgfast.data.sources.image_folder.list_classes", lambda folder: sorted(COLOURS, reverse=True))
    assert evaluate_checkpoint(run, root=str(root))["top1"] == 100


def test_images_that_moved_are_asked_for_by_the_option(run, tmp_path, capsys):
    assert main([run, "--root", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in (said := capsys.readouterr().err) and said.endswith("lie now is said with --root FOLDER\n")


@pytest.mark.parametrize(("arguments", "taken"), [([], "ema"), (["--weights", "model"], "model")])
def test_the_weights_taken_from_a_file_of_the_papers_code_are_said(tmp_path, capsys, arguments, taken):
    """Its moving average errs less there, and its test mode takes it; zero weights give every class alike."""
    state = pyth_state(create_model("cifar_resnet8", num_classes=10), list(resnet_names(3, 1)))
    state = {name: value.abs() if name.endswith("running_var") else value for name, value in state.items()}
    average = {name: torch.zeros_like(value) for name, value in state.items()}
    entries = {"ema_state": average, "cfg": "MODEL: {IMG_SIZE: 16}", "test_err": 50, "ema_err": 40}
    save(tmp_path / "model.pyth", state, **entries)
    arguments = [str(tmp_path / "model.pyth"), "--dataset", "digits", "--device", "cpu", *arguments]
    assert main(arguments) == 0
    said, scores = capsys.readouterr().out.splitlines()
    assert said.startswith(f"{taken}_state of ") and said.endswith("model 50.00 %, ema 40.00 %)")
    assert ("loss 2.3026" in scores) is (taken == "ema")


def test_weights_are_chosen_in_files_of_the_papers_code_alone(run, capsys):
    assert main([run, "--weights", "ema"]) == 2
    assert capsys.readouterr().err.startswith("error: --weights: ema chooses between the weights in a .pyth file")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, "w.safetensors: head.bias holds numbers that are not finite: its training had diverged"),
        (math.inf, "w.safetensors: head.bias holds numbers that are not finite: its training had diverged"),
        (3e38, "w.safetensors gives a loss of "),
    ],
)
def test_weights_that_give_no_finite_loss_are_refused(run, tmp_path, capsys, value, message):
    state, header = read_weights(Path(run, "best.safetensors"))
    state["head.bias"][:] = value * torch.tensor([-1.0, 1.0, 1.0])
    save_weights(tmp_path / "w.safetensors", state, header)
    assert main([str(tmp_path / "w.safetensors")]) == 2
    assert message in capsys.readouterr().err
