"""The README's pictures show the numbers of committed runs."""

import csv
import json

import pytest

from benchmarks import figure
from benchmarks.pictures import all_images, fewer_images, guidance
from benchmarks.pictures.svg import shown

ROOT = guidance.RESULTS.parents[1]


def test_pictures_are_made_from_the_newest_runs():
    assert figure.main(["--check"]) == 0


@pytest.mark.parametrize("picture", [module.PICTURE for module in figure.PICTURES], ids=lambda path: path.stem)
def test_pictures_are_small_and_in_a_document(picture):
    assert picture.stat().st_size < 100_000
    shown_by = [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    assert any(f"({picture.relative_to(document.parent)})" in document.read_text() for document in shown_by)


def write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def planted_runs(folder):
    """Two variants, two seeds, one layer of two heads."""
    folder.mkdir()
    heads = []
    for variant, top1 in (("base", 10.0), ("guided", 20.0)):
        for seed in (1, 2):
            name = f"cifar100-cpu-{variant}-seed{seed}"
            judged = [{"epoch": 1, "val_top1": ""}, {"epoch": 2, "val_top1": top1 + seed}]
            write(folder / f"{name}.summary.csv", judged)
            for head, distance in enumerate((top1, top1 + 2 * seed)):
                row = {"checkpoint": name, "layer": "blocks.0.attn", "head": head, "distance_pixels": distance}
                heads.append(row | {"uniform_pixels": 16.5})
    write(folder / "attention_distance.csv", heads)
    write(folder / "table.csv", [{"variant": "base", "best_top1": 11.5}, {"variant": "guided", "best_top1": 21.5}])


def test_series_are_those_of_the_files_and_survive_the_drawing(tmp_path):
    planted_runs(tmp_path / "2026-01-01_epyc_cifar100-cpu")
    planted_runs(tmp_path / "2026-01-01_epyc_cifar100-cpu-2")
    found = json.loads(json.dumps(guidance.series(tmp_path)))
    assert found["runs"].endswith("-2")
    assert found["guided"] == {"top1": 21.5, "accuracy": [[[2, 21.0]], [[2, 22.0]]], "distance": [21.5]}
    assert found["uniform"] == 16.5
    guidance.draw(found, tmp_path / "picture.svg")
    assert shown(tmp_path / "picture.svg") == found


def test_fewer_images_are_those_of_the_files_and_survive_the_drawing(tmp_path):
    folder = tmp_path / "2026-01-01_epyc_data-curves"
    folder.mkdir()
    for images in (600, 6000):
        for run, top1 in (("base-{}-seed1", 10), ("guided-{}-seed1", 20), ("guided-{}-seed2", 21), ("teacher-{}", 30)):
            judged = [{"epoch": 1, "val_top1": ""}, {"epoch": 2, "val_top1": top1 + images}]
            write(folder / f"{run.format(images)}.summary.csv", judged)
    found = json.loads(json.dumps(fewer_images.series(tmp_path)))
    assert found["base"] == {"600": [610], "6000": [6010]}
    assert found["guided"] == {"600": [620, 621], "6000": [6020, 6021]}
    assert found["teacher"] == {"600": [630], "6000": [6030]}
    fewer_images.draw(found, tmp_path / "picture.svg")
    assert shown(tmp_path / "picture.svg") == found


def test_all_images_are_those_of_the_files_and_survive_the_drawing(tmp_path):
    folder = tmp_path / "2026-01-01_epyc_cifar100-all"
    folder.mkdir()
    for variant, top1 in (("base", 10.0), ("guided", 20.0)):
        rows = [{"epoch": 1, "train_top1": top1, "val_top1": ""}, {"epoch": 2, "train_top1": 50, "val_top1": top1 + 1}]
        write(folder / f"{variant}-seed1.summary.csv", rows)
    found = json.loads(json.dumps(all_images.series(tmp_path)))
    assert found["base"] == {"train": [[1, 10.0], [2, 50.0]], "test": [[2, 11.0]]}
    assert found["guided"] == {"train": [[1, 20.0], [2, 50.0]], "test": [[2, 21.0]]}
    all_images.draw(found, tmp_path / "picture.svg")
    assert shown(tmp_path / "picture.svg") == found
