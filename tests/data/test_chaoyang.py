"""Chaoyang: the json files decide what is read; each broken one is named."""

import json

import numpy as np
import pytest
from PIL import Image

from lgfast.data import load_dataset
from tests.data.layouts import write_chaoyang


def test_json_gives_images_and_labels(tmp_path):
    folder = write_chaoyang(tmp_path)
    train, test = load_dataset("chaoyang", tmp_path), load_dataset("chaoyang", tmp_path, "test")
    assert train.labels.tolist() == [0, 1, 2, 3, 0, 1]
    assert test.labels.tolist() == [0, 1, 2, 3]
    assert train.class_names == ("normal", "serrated", "adenocarcinoma", "adenoma")
    assert np.array_equal(train.image(2), np.asarray(Image.open(folder / "train" / "2.JPG")))


def test_missing_files_say_where_to_get_them(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no train.json in .*chaoyang; request it at https://"):
        load_dataset("chaoyang", tmp_path)
    folder = write_chaoyang(tmp_path)
    (folder / "test" / "3.JPG").unlink()
    with pytest.raises(FileNotFoundError, match=r"missing .*3.JPG; request"):
        load_dataset("chaoyang", tmp_path, "test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"name": "train/0.JPG", "la', "train.json: truncated or damaged JSON"),
        ("{}", "expected a list of images, got dict"),
        ("[]", "expected a list of images"),
        ('[{"name": "train/0.JPG"}]', "entry 0 must have a text 'name' and an integer 'label'"),
        (json.dumps([{"name": "train/0.JPG", "label": 4}]), r"labels must lie in \[0, 4\), got 4 for image 0"),
        (json.dumps([{"name": "train/0.JPG", "label": True}]), "labels must be whole numbers, got True for image 0"),
    ],
)
def test_broken_json_is_named(tmp_path, content, message):
    (write_chaoyang(tmp_path) / "train.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_dataset("chaoyang", tmp_path)
