"""The one line of docs/own-images.md that goes from a folder of photographs to everything, with a tiny network."""

import csv
import itertools
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lgfast
from lgfast.__main__ import main
from lgfast.inference.classifier import load_onnx
from tests.mixed_photos import class_sizes, write_mixed_photos
from tests.ops.real_images import sample_images
from tests.test_evaluate import COLOURS

GUIDE = Path(__file__).resolve().parents[1] / "docs" / "own-images.md"
SMALL = {
    "augment.image_size": 16, "augment.teacher_size": 8, "model.embed_dim": 32, "model.depth": 1, "model.num_heads": 2,
    "guidance.student_layers": "0,0,0", "data.batch_size": 8, "device": "cpu", "precision": "fp32",
}  # fmt: skip


def documented_commands():
    """The parts of the line between && signs, as words."""
    text = GUIDE.read_text().partition("## In one line")[2]
    line = re.search(r"```\n(.*?)```", text, re.S)[1].replace("\\\n", " ")
    return [shlex.split(part) for part in line.split("&&")]


@pytest.fixture
def photos(tmp_path):
    """72 of mixed kinds, of three colours, the rarest a quarter as many as the commonest."""
    kinds = dict(zip(COLOURS, class_sizes(72, 3), strict=True))
    pictures = itertools.cycle(sample_images())
    tinted = {
        name: [(next(pictures) // 4 + np.array(COLOURS[name]) * 3 // 4).astype(np.uint8) for _ in range(count)]
        for name, count in kinds.items()
    }
    write_mixed_photos(tmp_path / "photos", tinted, (24, 40))
    return tinted


def test_photographs_are_of_mixed_kinds(photos, tmp_path):
    files = sorted((tmp_path / "photos").rglob("*.*"))
    assert len(files) == 72 and len({path.suffix for path in files}) == 3
    opened = [Image.open(path) for path in files]
    assert {image.mode for image in opened} == {"L", "RGB"} and {image.getexif().get(274) for image in opened} >= {
        3,
        6,
        8,
    }
    assert {path.parent.parent.name for path in files} == {"photos", *COLOURS}
    sizes = [len(images) for images in photos.values()]
    assert sum(sizes) == 72 and sizes[0] >= 3 * sizes[-1]


def test_the_documented_line(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LGFAST_CACHE", str(tmp_path / "cache"))
    (tmp_path / "new-pictures").symlink_to(tmp_path / "photos" / "cat")
    quick = [text for key, value in SMALL.items() for text in ("--set", f"{key}={value}")]
    more = {"train": ["--folds", "2", "--epochs", "1", *quick]}
    commands = documented_commands()
    assert [command[:2] for command in commands] == [
        ["lgfast", name] for name in ("doctor", "train", "predict", "export")
    ]
    for _, name, *arguments in commands:
        assert main([name, *arguments, *more.get(name, ())]) == 0
    said = capsys.readouterr().out
    assert "72 images, each tested once" in said
    with (tmp_path / "runs/photos/predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["file"] for row in rows}) == 72 and {row["fold"] for row in rows} == set("12")
    with (tmp_path / "predictions.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(photos["cat"])
    assert "Cross-validation" in (tmp_path / "runs/photos/index.html").read_text()
    images = torch.rand(3, 3, 16, 16)
    expected = lgfast.load(tmp_path / "runs/photos", "cpu").logits(images)
    found = load_onnx(tmp_path / "runs/photos/model.onnx").logits(images)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-4)
