"""The recipe for photographs of one's own: classes in folders, no parts, a camera held on its side."""

import collections
import csv
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from lgfast import train
from lgfast.assembly.images import load_splits, settle
from lgfast.config import load_recipe, load_yaml, replace
from lgfast.evaluate import evaluate_checkpoint
from tests.test_evaluate import COLOURS

SMALL = {
    "augment.image_size": 16,
    "augment.teacher_size": 8,
    "model.embed_dim": 32,
    "model.depth": 3,
    "model.num_heads": 2,
    "guidance.student_layers": "0,1,2",
    "data.batch_size": 8,
    "min_steps": 130,
    "log.tensorboard": "false",
    "device": "cpu",
    "precision": "fp32",
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three classes of 20 JPEGs of 90x60, which their tags turn: the upper half is dark when they are upright."""
    root = tmp_path_factory.mktemp("photos")
    for name, colour in COLOURS.items():
        (root / name).mkdir()
        for i in range(20):
            upright = np.empty((90, 60, 3), np.uint8)
            upright[:], upright[:45] = colour, [value // 4 for value in colour]
            exif = Image.Exif()
            exif[274] = 6  # stored lying on its left side
            stored = Image.fromarray(np.rot90(upright + i))
            stored.save(root / name / f"{i}.jpg", exif=exif, quality=95)
    return root


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory):
    """A run of the command line, and what it printed."""
    folder = tmp_path_factory.mktemp("run")
    teacher = folder / "teacher.yaml"
    teacher.write_text("base: photos-resnet8\nname: small-teacher\nmin_steps: 130\ndata: {batch_size: 8}\n")
    changes = SMALL | {"data.root": photos, "run_dir": folder / "run", "teacher.cache": folder / "cache"}
    changes |= {"teacher.recipe": teacher}
    arguments = [text for key, value in changes.items() for text in ("--set", f"{key}={value}")]
    return folder, arguments


def run_once(finished, capsys):
    folder, arguments = finished
    if not (folder / "out").exists():
        assert train.main(["--recipe", "photos", *arguments]) == 0
        (folder / "out").write_text(capsys.readouterr().out)
    return folder / "run", (folder / "out").read_text().splitlines()


def test_images_are_upright_and_small(photos):
    splits = load_splits(replace(load_recipe("photos"), {"data.root": str(photos)}))
    side = math.ceil(64 / math.sqrt(0.3 * 3 / 4))
    assert splits.train.sizes.tolist() == [[90, 60]] * 43 and side > 60
    image = splits.train.image(0).astype(int)
    assert image[:40].mean() < image[50:].mean() / 2
    small = load_splits(
        replace(
            load_recipe("photos"), {"data.root": str(photos)} | {"augment.image_size": 16, "augment.teacher_size": 8}
        )
    )
    assert small.train.sizes.tolist() == [[51, 34]] * 43


def test_the_number_of_epochs_follows_from_the_number_of_images(photos):
    config = replace(load_recipe("photos"), {"data.root": str(photos), "data.batch_size": 8})
    assert settle(replace(config, {"min_steps": 131})).epochs == 27  # 43 images: 5 steps an epoch
    assert settle(replace(config, {"min_steps": 10})).epochs == 20
    assert settle(replace(config, {"epochs": 3})).epochs == 3


def test_teacher_is_trained_alike(finished, capsys):
    run_dir, _ = run_once(finished, capsys)
    teacher_run = json.loads((run_dir / "result.json").read_text())["teacher_run"]
    own, teachers = load_yaml(run_dir / "config.yaml"), load_yaml(f"{teacher_run}/config.yaml")
    assert teachers.data == replace(own, {"data.stored_side": 34}).data
    assert teachers.eval == own.eval and teachers.epochs == own.epochs == 26
    assert (teachers.augment.image_size, teachers.model.name) == (8, "cifar_resnet8")


def test_the_parts_are_recorded(photos, finished, capsys):
    run_dir, _ = run_once(finished, capsys)
    with (run_dir / "images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["file"] for row in rows) == sorted(str(path) for path in photos.rglob("*.jpg"))
    assert collections.Counter(row["part"] for row in rows) == {"train": 43, "validation": 5, "test": 12}
    assert all(row["class"] in row["file"] for row in rows)
    assert collections.Counter(row["class"] for row in rows if row["part"] == "test") == dict.fromkeys(COLOURS, 4)


def test_the_last_line_compares_student_and_teacher(finished, capsys):
    run_dir, lines = run_once(finished, capsys)
    result = json.loads((run_dir / "result.json").read_text())
    student, teacher = result["test_top1"], result["teacher_test_top1"]
    assert lines[-1].startswith(f"student {student:.2f} %, its teacher {teacher:.2f} %: ")
    assert math.isclose(sum(result["class_top1"].values()) / 3, student)  # as many images in each
    worst = [f"{name} {top1:.0f} %" for name, top1 in result["class_top1"].items() if top1 < student]
    assert all(text in lines[-1] for text in worst)


def test_evaluation_says_when_the_split_has_moved(photos, finished, capsys, recwarn):
    run_dir, _ = run_once(finished, capsys)
    result = json.loads((run_dir / "result.json").read_text())
    recwarn.clear()
    assert evaluate_checkpoint(str(run_dir), device="cpu")["top1"] == result["test_top1"]
    assert not [w for w in recwarn if "may have been trained on" in str(w.message)]
    extra = photos / "ant" / "extra.jpg"
    extra.write_bytes((photos / "bee" / "0.jpg").read_bytes())
    with pytest.warns(UserWarning, match="some that are tested now may have been trained on"):
        evaluate_checkpoint(str(run_dir), device="cpu")
    extra.unlink()
    torch.manual_seed(0)
