"""Tiny ImageNet: both validation layouts give the same set; the published trap (one class) cannot happen."""

import pytest

from lgfast.data import load_dataset
from tests.data.layouts import write_tiny_imagenet

WNIDS = ("n01443537", "n01629819", "n02321529")


@pytest.mark.parametrize("val_layout", ["flat", "folders", "folders/images"])
def test_every_val_layout_gives_the_same_set(tmp_path, val_layout):
    write_tiny_imagenet(tmp_path / "published")
    write_tiny_imagenet(tmp_path / "copy", val_layout)
    expected, got = (load_dataset("tiny_imagenet", tmp_path / name, "test") for name in ("published", "copy"))
    assert got.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert got.class_names == WNIDS
    assert got.content_hash == expected.content_hash


def test_labels_come_from_the_annotations(tmp_path):
    folder = write_tiny_imagenet(tmp_path)
    lines = (folder / "val" / "val_annotations.txt").read_text().splitlines()
    (folder / "val" / "val_annotations.txt").write_text("\n".join(line for line in lines if WNIDS[2] in line))
    assert load_dataset("tiny_imagenet", tmp_path, "test").labels.tolist() == [2, 2]


def test_train_is_sorted_by_class_and_name(tmp_path):
    write_tiny_imagenet(tmp_path)
    train = load_dataset("tiny_imagenet", tmp_path)
    assert train.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert train.sizes.unique(dim=0).tolist() == [[64, 64]]


def test_missing_parts_state_the_layout(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no train in .*tiny-imagenet-200.*cs231n.stanford.edu"):
        load_dataset("tiny_imagenet", tmp_path)
    folder = write_tiny_imagenet(tmp_path)
    (folder / "val" / "images" / "val_1.JPEG").unlink()
    with pytest.raises(FileNotFoundError, match=r"missing .*val_1.JPEG; unpack"):
        load_dataset("tiny_imagenet", tmp_path, "test")
    (folder / "val" / "val_annotations.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"missing .*val_annotations.txt; unpack"):
        load_dataset("tiny_imagenet", tmp_path, "test")


def test_train_without_classes_is_refused(tmp_path):
    (tmp_path / "tiny-imagenet-200" / "train" / "images").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no class folders named n01443537"):
        load_dataset("tiny_imagenet", tmp_path)


def test_class_without_images_everywhere_is_refused(tmp_path):
    (tmp_path / "tiny-imagenet-200" / "train" / "n01443537" / "images").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no images in the train part"):
        load_dataset("tiny_imagenet", tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("val_0.JPEG\tn99999999\t0", "line 1: class n99999999 has no folder under train/"),
        ("val_0.JPEG", "expected a file name"),
    ],
)
def test_broken_annotation_is_named(tmp_path, line, message):
    folder = write_tiny_imagenet(tmp_path)
    (folder / "val" / "val_annotations.txt").write_text(line)
    with pytest.raises(ValueError, match=message):
        load_dataset("tiny_imagenet", tmp_path, "test")


def test_unknown_val_class_folder_is_named(tmp_path):
    folder = write_tiny_imagenet(tmp_path, "folders")
    (folder / "val" / WNIDS[0]).rename(folder / "val" / "n99999999")
    with pytest.raises(ValueError, match="classes n99999999 have no folder under train/"):
        load_dataset("tiny_imagenet", tmp_path, "test")
