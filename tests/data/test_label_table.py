"""Labels from a table: the same images as class folders give, and every fault of a table by its line."""

import re

import pytest
import torch
from PIL import Image

from lgfast.assembly.images import load_splits
from lgfast.config import load_recipe, replace
from lgfast.data import load_dataset

COLOURS = {"bee": (200, 180, 20), "cat": (90, 90, 90), "dog": (120, 70, 20)}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """The same pictures in class folders, and in one folder beside a table."""
    folders, one = tmp_path_factory.mktemp("folders") / "pictures", tmp_path_factory.mktemp("one") / "pictures"
    rows = ["file,label,plant"]
    for name, colour in COLOURS.items():
        (folders / name).mkdir(parents=True)
        (one / name).mkdir(parents=True)
        for i in range(10):
            image = Image.new("RGB", (9, 9), tuple(value + i for value in colour))
            image.save(folders / name / f"{i}.png")
            image.save(one / name / f"{i}.png")
            rows.append(f"{name}/{i}.png,{name},{name}-{i // 2}")
    (one / "labels.csv").write_text("\n".join(rows) + "\n")
    return folders, one


def config(root, **changes):
    changes = {"data.root": str(root), "data.labels": "labels.csv", "epochs": 1} | changes
    return replace(load_recipe("photos-base"), changes)


@pytest.mark.parametrize("split", ["train", "test"])
def test_it_gives_what_class_folders_give(pictures, split):
    folders, one = pictures
    by_folder, by_table = (
        load_dataset("folder", folders, split),
        load_dataset("folder", one, split, labels="labels.csv"),
    )
    assert by_table.class_names == by_folder.class_names == tuple(COLOURS)
    assert torch.equal(by_table.labels, by_folder.labels) and by_table.content_hash == by_folder.content_hash


def test_a_column_says_the_parts(pictures, tmp_path):
    table = tmp_path / "parts.csv"
    rows = [f"{pictures[1]}/{name}/{i}.png,{name},{('train', 'val')[i > 6]}" for name in COLOURS for i in range(10)]
    table.write_text("\n".join(["file,label,split", *rows]))
    train, test = (load_dataset("folder", pictures[1], split, labels=table) for split in ("train", "test"))
    assert torch.bincount(train.labels).tolist() == [7] * 3 and torch.bincount(test.labels).tolist() == [3] * 3
    assert {path.name for path in test.paths} == {"7.png", "8.png", "9.png"}


def test_a_column_says_the_groups(pictures):
    splits = load_splits(config(pictures[1], **{"data.group": "plant"}))
    found = []
    for images in (splits.train, splits.select, splits.test):
        found.append({f"{path.parent.name}-{int(path.stem) // 2}" for path in images.paths})
    assert all(found) and not (found[0] & found[1] or found[0] & found[2] or found[1] & found[2])
    assert len(set.union(*found)) == 15


def test_a_changed_table_is_noticed(pictures, tmp_path):
    table = tmp_path / "labels.csv"
    text = (pictures[1] / "labels.csv").read_text()
    table.write_text(text)
    first = load_dataset("folder", pictures[1], "train", labels=table)
    table.write_text(text.replace("bee/3.png,bee", "bee/3.png,cat"))
    second = load_dataset("folder", pictures[1], "train", labels=table)
    assert first.content_hash != second.content_hash


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column 'file'; its columns are none"),
        ("file,class\na,b\n", "has no column 'label'; its columns are file, class"),
        ("file,label\n", "has no rows"),
        ("file,label\nbee/0.png\n", "line 2: expected 2 values"),
        ("file,label\nbee/0.png,bee,x\n", "line 2: expected 2 values"),
        ("file,label\nbee/0.png,\n", "line 2: file and label must not be empty"),
        ("file,label\nbee/0.png,bee\nbee/0.png,cat\n", "line 3: bee/0.png was named in line 2 already"),
        ("file,label\nbee/0.png,bee\n./cat/../bee/0.png,cat\n", "line 3: ./cat/../bee/0.png was named in line 2"),
        ("file,label,label\nbee/0.png,bee,cat\n", "has two columns 'label'"),
        ("file;label\nbee/0.png;bee\n", "its columns are file;label .*separated by commas"),
        ("file,label,split\nbee/0.png,bee,other\n", "line 2: split must be train, test or val, got 'other'"),
        ("file,label\nbee/0.png,bee\nbee/77.png,bee\n", "1 files of .* are not there .*77.png"),
        ('file,label\n"bee/0.png,bee\n', "is no CSV"),
    ],
)
def test_a_fault_is_named_with_its_line(pictures, tmp_path, text, message):
    table = tmp_path / "labels.csv"
    table.write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=f"^data.labels: .*{message}"):
        load_dataset("folder", pictures[1], "train", labels=table)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"dog": "cat", "bee": "cat"}, r"data.labels: .*labels.csv has one label \(cat\)"),
        ({}, r"data.labels: 1 labels of .*labels.csv have no image to train on \(bee\)"),
    ],
)
def test_classes_that_cannot_be_trained_are_said_of_the_table(pictures, tmp_path, labels, message):
    table = tmp_path / "labels.csv"
    rows = [
        f"{name}/{i}.png,{labels.get(name, name)},{'test' if name == 'bee' or i > 6 else 'train'}"
        for name in COLOURS
        for i in range(10)
    ]
    table.write_text("\n".join(["file,label,split", *rows]))
    with pytest.raises(ValueError, match=message):
        load_splits(config(pictures[1], **{"data.labels": str(table)}))


@pytest.mark.parametrize("name", ["plannt", "zzz", "file"])
def test_groups_that_keep_nothing_together_are_refused(pictures, name):
    """A misspelt column would be an expression that finds nothing: images of a plant on both sides, without a word."""
    with pytest.raises(ValueError, match=f"^data.group: no two images have what '{name}' finds .* column"):
        load_splits(config(pictures[1], **{"data.group": name}))


def test_an_image_without_a_group_stands_alone(pictures, tmp_path):
    table = tmp_path / "labels.csv"
    text = (pictures[1] / "labels.csv").read_text()
    table.write_text(re.sub("(bee|cat)-[0-4]$", "", text, flags=re.MULTILINE))
    splits = load_splits(config(pictures[1], **{"data.group": "plant", "data.labels": str(table)}))
    assert {path.parent.name for path in splits.test.paths} == set(COLOURS)


def test_few_groups_are_split_as_they_can_be(pictures):
    """A fifth of four groups is one; of one group there is none to test."""
    splits = load_splits(config(pictures[1], **{"data.group": "[0-9]", "data.test_fraction": 0.01}))
    tested, trained = ({path.stem for path in images.paths} for images in (splits.test, splits.train))
    assert len(tested) == 1 and not tested & trained
    with pytest.raises(ValueError, match=r"^data.group: 2 folds need as many groups, got 1$"):
        load_splits(config(pictures[1], **{"data.group": "png"}))


def test_a_table_that_is_nowhere_or_of_another_dataset_is_refused(pictures):
    with pytest.raises(FileNotFoundError, match=r"data.labels: no table at .*none.csv"):
        load_splits(config(pictures[1], **{"data.labels": "none.csv"}))
    for name in ("cifar100", "digits"):
        with pytest.raises(ValueError, match=rf"data.labels: {name} has labels of its own"):
            load_dataset(name, pictures[1], "train", labels="labels.csv")
