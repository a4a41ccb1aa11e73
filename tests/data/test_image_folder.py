"""Class-per-folder trees: what is read, and what each broken tree is told."""

import os
import shutil
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from lgfast.data import formats, load_dataset, load_files
from lgfast.data.read import UnreadableError
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
    with pytest.raises(
        FileNotFoundError,
        match=r"no class folders; expected <root>/train/<class>/<image> .* or <root>/<class>",
    ):
        load_dataset("folder", tmp_path)
    write_folder(tmp_path, test_name="elsewhere")
    with pytest.raises(FileNotFoundError, match="no folder test or val; expected"):
        load_dataset("folder", tmp_path, "test")


def test_a_class_with_the_name_of_a_part_is_asked_about(tmp_path):
    for name in ("bus", "plane", "train"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "0.png")
    with pytest.raises(FileNotFoundError, match=r"; is train a class, as bus; plane\? then rename it"):
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


def labels_of(root, **options):
    return load_dataset("folder", root, **options).labels.tolist()


def test_links_to_folders_are_followed_once(tmp_path):
    """A folder that is not below the class, one that is, one above it (a loop), and one that leads nowhere."""
    write_folder(tmp_path / "tree")
    cat, elsewhere = tmp_path / "tree" / "train" / "cat", tmp_path / "elsewhere"
    shutil.copytree(cat, elsewhere / "deeper")
    (cat / "a_link").symlink_to(elsewhere)
    assert labels_of(tmp_path / "tree") == [0] * 6 + [1] * 3
    (cat / "own").mkdir()
    shutil.copy(cat / "0.png", cat / "own")
    (cat / "another_way").symlink_to(cat / "own")
    (cat / "own" / "loop").symlink_to(cat)
    (elsewhere / "deeper" / "loop").symlink_to(elsewhere)
    (cat / "nowhere").symlink_to(tmp_path / "absent")
    assert labels_of(tmp_path / "tree") == [0] * 7 + [1] * 3
    paths = [str(path.relative_to(cat)) for path in load_files("folder", tmp_path / "tree").paths[:7]]
    assert paths == ["0.png", "1.png", "2.png", *(f"a_link/deeper/{i}.png" for i in range(3)), "own/0.png"]


def test_a_class_may_be_a_link(tmp_path):
    write_folder(tmp_path / "tree")
    shutil.move(tmp_path / "tree" / "train" / "cat", tmp_path / "cats")
    (tmp_path / "tree" / "train" / "cat").symlink_to(tmp_path / "cats")
    assert labels_of(tmp_path / "tree") == [0] * 3 + [1] * 3


def test_hidden_folders_inside_a_class_are_no_part_of_it(tmp_path):
    write_folder(tmp_path)
    hidden = tmp_path / "train" / "cat" / ".ipynb_checkpoints"
    hidden.mkdir()
    shutil.copy(tmp_path / "train" / "cat" / "0.png", hidden / "0-checkpoint.png")
    assert labels_of(tmp_path) == [0] * 3 + [1] * 3


@pytest.fixture
def fresh_formats():
    """Find out anew which kinds of file are read."""
    formats.formats.cache_clear()
    yield
    formats.formats.cache_clear()


def test_pictures_that_are_not_read_are_named(tmp_path, monkeypatch, fresh_formats):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    write_folder(tmp_path)
    for name in ("one.HEIC", "two.heic", "three.heif"):
        (tmp_path / "train" / "cat" / name).write_bytes(b"x")
    for load in (load_dataset, load_files):
        with pytest.warns(UserWarning, match=r"left out 3 pictures .*\.heic, \.heif; .*pip install pillow-heif"):
            assert len(load("folder", tmp_path)) == 6
    (tmp_path / "test" / "dog" / "raw.CR2").write_bytes(b"x")
    with pytest.warns(UserWarning, match=r"left out 1 pictures .*raw.CR2\): convert them"):
        load_dataset("folder", tmp_path, "test")
    for path in tmp_path.rglob("*.png"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"train: no images .*; 3 pictures of kinds .*pip install pillow-heif"):
        load_dataset("folder", tmp_path)


def test_heic_is_read_where_the_package_for_it_is(tmp_path, monkeypatch, fresh_formats):
    class Package:
        """Reads HEIC as far as a test needs: any of Pillow's own formats under that name."""

        @staticmethod
        def register_heif_opener():
            Image.init()
            monkeypatch.setitem(Image.OPEN, "HEIF", Image.OPEN["PNG"])

    monkeypatch.setitem(sys.modules, "pillow_heif", Package)
    write_folder(tmp_path)
    path = tmp_path / "train" / "cat" / "0.png"
    path.rename(path.with_suffix(".HEIC"))
    assert labels_of(tmp_path) == [0] * 3 + [1] * 3


@pytest.mark.parametrize("load", [load_dataset, load_files])
def test_a_folder_that_cannot_be_listed_is_not_passed_over(tmp_path, monkeypatch, load):
    write_folder(tmp_path)
    inner, listed = tmp_path / "train" / "cat" / "inner", os.scandir
    inner.mkdir()

    def scandir(path="."):
        if os.fspath(path) == str(inner):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UnreadableError, match=r"cat/inner: cannot be read \(Permission denied\)"):
        load("folder", tmp_path)


@pytest.mark.parametrize("load", [load_dataset, load_files])
def test_names_need_not_be_utf8(tmp_path, load):
    root = tmp_path / os.fsdecode(b"caf\xe9")
    classes = (os.fsdecode(b"caf\xe9"), os.fsdecode(b"th\xe9"))
    write_folder(root, classes=classes)
    os.rename(root / "train" / classes[0] / "0.png", root / "train" / classes[0] / os.fsdecode(b"\xff.png"))
    for _ in range(2):
        images = load("folder", root)
        assert images.class_names == classes and len(images) == 6
    (root / "train" / classes[1] / "1.png").write_bytes(b"broken")
    with pytest.warns(UserWarning, match=r"skipped 1 broken images: .*th.*1\.png"):
        assert len(load("folder", root, skip_broken=True)) == 5


def write_flat(root, counts):
    for name, count in counts.items():
        (root / name / "sub").mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (4, 5), (i, len(name), 0)).save(root / name / ("sub" if i % 2 else "") / f"{i}.png")


def files_of(root, split, **options):
    files = load_files("folder", root, split, **options)
    return [path.relative_to(root) for path in files.paths], files.labels.tolist()


def test_classes_without_parts_are_split(tmp_path):
    """Every image is in one part; each class gives its share, and one image at least where it has two."""
    counts = {"ant": 20, "bee": 7, "cat": 2, "dog": 1, "eel": 50}
    write_flat(tmp_path, counts)
    (train, train_labels), (test, test_labels) = (files_of(tmp_path, split) for split in ("train", "test"))
    assert sorted(train + test) == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.png"))
    assert np.bincount(test_labels, minlength=5).tolist() == [4, 1, 1, 0, 10]
    assert np.bincount(train_labels, minlength=5).tolist() == [16, 6, 1, 1, 40]
    assert load_dataset("folder", tmp_path, "test").labels.tolist() == test_labels
    assert load_dataset("folder", tmp_path).class_names == tuple(counts)
    _, half = files_of(tmp_path, "test", test_fraction=0.5)
    assert np.bincount(half, minlength=5).tolist() == [10, 4, 1, 0, 25]


def test_a_split_depends_on_names_alone_and_hardly_moves(tmp_path):
    write_flat(tmp_path / "here", {"ant": 40, "bee": 40})
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    before, _ = files_of(tmp_path / "here", "test")
    assert files_of(tmp_path / "there", "test")[0] == before
    for i in range(5):
        shutil.copy(tmp_path / "here" / "ant" / "0.png", tmp_path / "here" / "ant" / f"new{i}.png")
    after, _ = files_of(tmp_path / "here", "test")
    assert len(after) == len(before) + 1
    old = {path for path in after if not path.name.startswith("new")}
    assert len(old ^ set(before)) <= 3


def test_a_split_is_cached_in_parts(tmp_path, monkeypatch):
    write_flat(tmp_path, {"ant": 10, "bee": 10})
    sizes = [len(load_dataset("folder", tmp_path, split)) for split in ("train", "test")]
    monkeypatch.setattr("lgfast.data.cache.build_cache", pytest.fail)
    assert sizes == [len(load_dataset("folder", tmp_path, split)) for split in ("train", "test")] == [16, 4]


def test_paths_of_decoded_images_are_known_also_where_some_are_skipped(tmp_path):
    write_folder(tmp_path)
    paths = sorted((tmp_path / "train").rglob("*.png"))
    for broken in (paths[0], paths[4]):
        broken.write_bytes(b"broken")
    for _ in range(2):
        with pytest.warns(UserWarning, match="skipped 2"):
            images = load_dataset("folder", tmp_path, skip_broken=True)
        assert images.paths == [paths[i] for i in (1, 2, 3, 5)]
        assert images.subset(torch.tensor([2, 0])).paths == [paths[3], paths[1]]
    assert load_dataset("digits").paths is None
