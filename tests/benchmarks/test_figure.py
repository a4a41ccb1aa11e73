"""The README's picture shows the numbers of committed runs."""

import csv
import json

from benchmarks import figure


def test_picture_is_made_from_the_newest_runs():
    assert figure.main(["--check"]) == 0


def test_picture_is_small_and_in_the_readme():
    assert figure.PICTURE.stat().st_size < 100_000
    assert f"({figure.PICTURE.relative_to(figure.ROOT)})" in (figure.ROOT / "README.md").read_text()


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
    newest = figure.newest_runs(tmp_path)
    found = json.loads(json.dumps(figure.series(newest)))
    assert newest.name.endswith("-2")
    assert found["guided"] == {"top1": 21.5, "accuracy": [[[2, 21.0]], [[2, 22.0]]], "distance": [21.5]}
    assert found["uniform"] == 16.5
    figure.draw(found, tmp_path / "picture.svg")
    assert figure.shown(tmp_path / "picture.svg") == found
