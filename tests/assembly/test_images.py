"""The parts of a run's images belong together."""

import math

import pytest

from lgfast.assembly import images
from lgfast.assembly.teachers import teacher_config
from lgfast.config import Config, replace
from lgfast.data import load_dataset
from lgfast.ops.reference.augment_plan import _centre_crop
from tests.data.layouts import write_folder


def test_parts_that_were_read_with_other_classes_are_refused(tmp_path, monkeypatch):
    """For instance where a class is added after one part was read and before the other."""
    write_folder(tmp_path, train=5)

    def load(name, root, split, **options):
        if split == "test":
            (tmp_path / "train" / "ant").mkdir()
        return load_dataset(name, root, split, **options)

    monkeypatch.setattr(images, "load_dataset", load)
    config = replace(Config(), {"data.dataset": "folder", "data.root": str(tmp_path)})
    with pytest.raises(ValueError, match=r"data.root: .*-train and .*-test were read with other classes \(ant\)"):
        images.load_splits(config)


def test_images_are_stored_no_larger_than_the_views_can_use():
    config = replace(Config(), {"data.stored_side": "none", "augment.image_size": 32})
    assert images.stored_side(Config()) == 0
    side = images.stored_side(config)
    smallest = min(config.augment.crop_scale[0] * side**2 * ratio for ratio in config.augment.crop_ratio)
    assert math.sqrt(smallest) >= 32 > math.sqrt(smallest) * (side - 1) / side
    assert images.stored_side(replace(config, {"augment.weak": "true"})) == 32
    assert teacher_config(config).data.stored_side == side


def test_one_class_is_refused(tmp_path):
    """For instance where the user names the folder above the right one."""
    write_folder(tmp_path / "photos" / "cat", train=5)
    config = replace(Config(), {"data.dataset": "folder", "data.root": str(tmp_path / "photos" / "cat" / "train")})
    images.load_splits(config)
    config = replace(config, {"data.root": str(tmp_path / "photos")})
    with pytest.raises(ValueError, match=r"data.root: .*photos has one class folder \(cat\)"):
        images.load_splits(config)


@pytest.mark.parametrize("ratio", [(0.0001, 0.0001), (1e4, 1e4), (0.05, 0.05), (0.07, 0.3), (15.9, 16), (17, 20)])
def test_a_crop_without_a_pixel_is_refused(ratio):
    """The truth is the plan's centred crop, which is used where no random one fits."""
    train = load_dataset("digits", "", "train")
    height, width = train.sizes.long().unbind(1)
    sides = _centre_crop(ratio, height, width)[2:]
    config = replace(Config(), {"augment.crop_ratio": ratio})
    if min(side.min() for side in sides) > 0:
        images.check_crops(config, train)
        return
    with pytest.raises(ValueError, match=r"^augment\.crop_ratio: an image of 8x8 pixels has no crop of width / height"):
        images.load_splits(config)
    images.check_crops(replace(config, {"augment.weak": True}), train)
