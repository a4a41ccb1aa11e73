"""Class-per-folder trees: what is read, and what each broken tree is told."""

import warnings

import numpy as np
import pytest
from PIL import Image

from lgfast.data import load_dataset
from tests.data.layouts import write_folder


@pytest.mark.parametrize("test_name", ["test", "val"])
def test_reads_both_splits(tmp_path, test_name):
    write_folder(tmp_path, test_name=test_name)
    train, test = load_dataset("folder", tmp_path), load_dataset("folder", tmp_path, "test")
    assert train.class_names == test.class_names == ("cat", "dog")
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert test.labels.tolist() == [0, 0, 1, 1]
    for i, path in enumerate(sorted((tmp_path / "train").rglob("*.png"))):
        assert np.array_equal(train.image(i), np.asarray(Image.open(path)))


def test_every_mode_becomes_rgb(tmp_path):
    write_folder(tmp_path)
    path = tmp_path / "train" / "cat" / "0.png"
    for mode in ("L", "P", "RGBA", "1"):
        Image.open(path).convert(mode).save(path)
        assert load_dataset("folder", tmp_path).image(0).shape == (6, 9, 3)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path, suffix):
    write_folder(tmp_path)
    levels = np.arange(256).reshape(16, 16)
    path = tmp_path / "train" / "cat" / f"deep.{suffix}"
    for offset in (0, 128, -128):  # the nearest level of 8 bits, 257 of 16 bits apart
        Image.fromarray((257 * levels + offset).clip(0, 65535).astype(np.uint16)).save(path)
        assert np.array_equal(load_dataset("folder", tmp_path).image(3), np.stack([levels] * 3, axis=2))


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_without_a_range_are_refused(tmp_path, dtype):
    write_folder(tmp_path)
    Image.fromarray(np.ones((6, 9), dtype)).save(tmp_path / "train" / "cat" / "deep.tiff")
    with pytest.raises(ValueError, match=r"deep.tiff: .*32-bit pixels have no known range, store them in 8 or 16 bits"):
        load_dataset("folder", tmp_path)


def test_other_files_are_ignored(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "train" / "cat" / "Thumbs.db").write_text("x")
    (tmp_path / "train" / "cat" / "._0.png").write_text("x")
    assert len(load_dataset("folder", tmp_path)) == 6


def test_undecodable_image_is_named(tmp_path):
    write_folder(tmp_path)
    path = tmp_path / "train" / "dog" / "1.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"dog/1.png: cannot be decoded .*data.skip_broken"):
        load_dataset("folder", tmp_path)


def test_broken_images_are_skipped_and_counted_on_request(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "train" / "cat" / "0.png").write_bytes(b"")
    (tmp_path / "train" / "dog" / "1.png").write_text("not an image")
    (tmp_path / "train" / "dog" / "gone.png").symlink_to(tmp_path / "gone.png")
    for _ in range(2):  # decoded, then from the cache: the warning stays
        with pytest.warns(UserWarning, match=r"skipped 3 broken images: .*cat/0.png.*dog/1.png.*dog/gone.png"):
            train = load_dataset("folder", tmp_path, skip_broken=True)
        assert train.labels.tolist() == [0, 0, 1, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_dataset("folder", tmp_path, "test", skip_broken=True)) == 4


def test_a_set_without_a_sound_image_is_refused(tmp_path):
    write_folder(tmp_path)
    for path in (tmp_path / "train").rglob("*.png"):
        path.write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"none of its 6 images can be decoded; the first: .*0.png"):
        load_dataset("folder", tmp_path, skip_broken=True)


def test_missing_split_states_the_layout(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder train; expected <root>/train/<class>/<image>"):
        load_dataset("folder", tmp_path)
    write_folder(tmp_path, test_name="elsewhere")
    with pytest.raises(FileNotFoundError, match="no folder test or val; expected"):
        load_dataset("folder", tmp_path, "test")


def test_images_without_class_folders_state_the_layout(tmp_path):
    (tmp_path / "train").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "train" / "0.png")
    with pytest.raises(FileNotFoundError, match="no class folders; expected"):
        load_dataset("folder", tmp_path)
    (tmp_path / "train" / "cat").mkdir()
    with pytest.raises(FileNotFoundError, match="no images in its class folders; expected"):
        load_dataset("folder", tmp_path)


def test_unknown_test_class_is_named(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "test" / "images").mkdir()
    with pytest.raises(ValueError, match=r"class folders \['images'\] are not among the 2 classes .*tiny_imagenet"):
        load_dataset("folder", tmp_path, "test")
