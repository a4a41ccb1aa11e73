"""The doctor says what is wrong with a dataset, and nothing about a sound one."""

import shutil
import sys

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat

from lgfast.data.formats import formats
from lgfast.doctor import dataset
from lgfast.doctor.__main__ import main
from lgfast.doctor.dataset import Official, find_datasets, inspect_dataset
from tests.data.layouts import (
    write_chaoyang,
    write_cifar10,
    write_cifar100,
    write_flowers,
    write_folder,
    write_tiny_imagenet,
)
from tests.data.pictures import kinds, turned_jpeg

pytestmark = pytest.mark.filterwarnings("ignore:.*md5.*")


def findings(name, root, level=None):
    return [str(one) for one in inspect_dataset(name, root) if level is None or one.level == level]


def problems(name, root):
    return findings(name, root, "warning") + findings(name, root, "error")


def some_text(texts, *parts):
    return any(all(part in text for part in parts) for text in texts)


@pytest.fixture
def tree(tmp_path):
    write_folder(tmp_path)
    return tmp_path


def test_sound_tree_has_no_problems(tree):
    assert not problems("folder", tree)
    assert some_text(findings("folder", tree), "train: 6 images of 2 classes")
    assert some_text(findings("folder", tree), "images are 6 to 8 high and 9 to 9 wide")
    assert some_text(findings("folder", tree), "no test image is also a training image")


def test_looking_writes_nothing(tree):
    before = sorted(tree.rglob("*"))
    findings("folder", tree)
    assert sorted(tree.rglob("*")) == before


def test_every_broken_image_is_counted(tree):
    for name in ("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"):
        (tree / "train" / name).write_bytes(b"broken")
    assert some_text(problems("folder", tree), "4 images cannot be decoded", "cat/0.png", "; ...")


def test_shared_and_contradicting_images_are_found(tree):
    shutil.copy(tree / "train" / "cat" / "0.png", tree / "test" / "dog" / "7.png")
    shutil.copy(tree / "train" / "cat" / "1.png", tree / "train" / "dog" / "8.png")
    shutil.copy(tree / "train" / "cat" / "2.png", tree / "train" / "cat" / "9.png")
    assert some_text(problems("folder", tree), "1 test images (20.00 %) are also training images", "7.png", "0.png")
    assert some_text(problems("folder", tree), "1 images appear under two labels", "8.png", "1.png")
    assert some_text(findings("folder", tree, "note"), "1 images appear twice", "9.png", "2.png")


def test_equal_bytes_of_another_shape_are_not_equal_images(tree):
    for path, shape in (("train/cat/0.png", (2, 8)), ("test/cat/0.png", (8, 2))):
        Image.fromarray(np.zeros((*shape, 3), np.uint8)).save(tree / path)
    assert some_text(findings("folder", tree, "ok"), "no test image is also a training image")


def test_empty_and_uneven_classes_are_found(tree):
    (tree / "train" / "emu").mkdir()
    shutil.rmtree(tree / "test" / "dog")
    assert some_text(findings("folder", tree, "error"), "train: 1 classes have no image: emu")
    assert some_text(findings("folder", tree, "warning"), "test: 2 classes have no image: dog; emu")
    (tree / "train" / "emu").rmdir()
    for i in range(40):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(tree / "train" / "cat" / f"more{i}.png")
    assert some_text(findings("folder", tree, "warning"), "uneven, 3 (dog) to 43 (cat) images each")
    for path in list((tree / "train" / "cat").glob("more*"))[8:]:
        path.unlink()
    assert some_text(findings("folder", tree, "note"), "uneven, 3 (dog) to 11 (cat) images each")


def test_turned_images_are_counted(tree):
    for orientation in (1, 6, 8):
        (tree / "train" / "cat" / f"turned{orientation}.jpg").write_bytes(turned_jpeg(orientation))
    (tree / "train" / "cat" / "turned.tiff").write_bytes(kinds()["turned.tiff"])
    note = "train: 2 of 10 images are turned by their EXIF tag"
    assert some_text(findings("folder", tree, "note"), note, "turned6.jpg", "fix: --data.exif-orientation")


def test_pictures_that_are_not_read_are_named(tree, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    formats.cache_clear()
    for i in range(5):
        (tree / "train" / "cat" / f"phone{i}.HEIC").write_bytes(b"x")
    (tree / "test" / "cat" / "raw.nef").write_bytes(b"x")
    texts = findings("folder", tree, "warning")
    assert some_text(texts, "train: left out are 5 pictures", ".heic", "phone0.HEIC", "fix: pip install pillow-heif")
    assert some_text(texts, "test: left out are 1 pictures", "raw.nef", "fix: convert them")
    for path in tree.rglob("*.png"):
        path.unlink()
    assert some_text(findings("folder", tree, "error"), "train: ", "no images", "5 pictures", "pip install pillow-heif")
    formats.cache_clear()


def test_classes_without_parts_are_recognised(tmp_path):
    write_folder(tmp_path / "parts")
    shutil.move(tmp_path / "parts" / "train", tmp_path / "flat")
    (tmp_path / "flat" / "cat" / "9.png").write_bytes((tmp_path / "flat" / "dog" / "0.png").read_bytes())
    assert find_datasets(tmp_path / "flat") == ["folder"]
    texts = findings("folder", tmp_path / "flat")
    assert some_text(texts, "a fifth of each class is the test part")
    assert some_text(texts, "train: 5 images of 2 classes") and some_text(texts, "test: 2 images of 2 classes")
    for path in (tmp_path / "flat").rglob("*.png"):
        path.rename(path.with_suffix(".heic"))
    assert find_datasets(tmp_path / "flat") == ["folder"]
    for path in (tmp_path / "flat").rglob("*.heic"):
        path.rename(path.with_suffix(".txt"))
    assert find_datasets(tmp_path / "flat") == find_datasets(tmp_path) == []


def test_unreadable_images_are_told_from_broken_ones(tree, monkeypatch):
    def fail(path, *arguments, **options):
        if str(path).endswith("cat/0.png"):
            raise PermissionError(13, "Permission denied")
        return open(path, *arguments, **options)

    monkeypatch.setattr("lgfast.data.read.open", fail, raising=False)
    (tree / "train" / "dog" / "0.png").write_bytes(b"broken")
    errors = findings("folder", tree, "error")
    assert some_text(errors, "train: 1 images cannot be decoded", "dog/0.png")
    assert some_text(errors, "train: 1 images cannot be read", "cat/0.png", "fix: let this user read")


def test_incomplete_published_dataset_is_an_error(tmp_path):
    write_cifar100(tmp_path)
    errors = findings("cifar100", tmp_path, "error")
    assert some_text(errors, "train: 20 images, published are 50000", "fix: download")
    assert some_text(errors, "5 classes, published are 100")


def test_unreadable_split_is_reported_and_the_other_still_checked(tmp_path):
    write_cifar100(tmp_path)
    (tmp_path / "cifar-100-python" / "train").write_bytes(b"")
    texts = findings("cifar100", tmp_path)
    assert some_text(texts, "ERROR", "train: truncated or damaged pickle")
    assert some_text(texts, "test: 10 images")


@pytest.fixture
def small_official(monkeypatch):
    """Published sizes that the small copies in layouts.py have."""
    sizes = {
        "cifar100": Official(5, {"train": 20, "test": 10}, (32, 32), True),
        "flowers102": Official(102, {"train": 10, "test": 5}, None, False),
        "tiny_imagenet": Official(3, {"train": 9, "test": 6}, (64, 64), True),
        "chaoyang": Official(4, {"train": 6, "test": 4}, (16, 16), False),
    }
    monkeypatch.setattr(dataset, "OFFICIAL", sizes)


def test_complete_copies_are_sound(tmp_path, small_official):
    writers = {
        "cifar100": write_cifar100,
        "tiny_imagenet": write_tiny_imagenet,
        "chaoyang": write_chaoyang,
    }
    for name, write in writers.items():
        write(tmp_path)
        assert not problems(name, tmp_path)


def test_swapped_flowers_splits_are_recognised(tmp_path, small_official):
    write_flowers(tmp_path)
    path = tmp_path / "flowers-102" / "setid.mat"
    parts = loadmat(path)
    train = np.concatenate([parts["trnid"], parts["valid"]], axis=1)
    savemat(path, {"trnid": parts["tstid"][:, :2], "valid": parts["tstid"][:, 2:], "tstid": train})
    assert some_text(
        problems("flowers102", tmp_path), "train: 5 images is the size of the other split; they are swapped"
    )


def test_overlapping_flowers_splits_are_recognised(tmp_path, small_official):
    parts = write_flowers(tmp_path)
    test_ids = np.concatenate([parts["tstid"][:-1], parts["trnid"][:1]])
    savemat(
        tmp_path / "flowers-102" / "setid.mat", {key: part[None] for key, part in (parts | {"tstid": test_ids}).items()}
    )
    assert some_text(findings("flowers102", tmp_path), "1 test images (20.00 %) are also training images")


def test_wrong_image_size_and_uneven_classes_of_a_published_set(tmp_path, small_official):
    folder = write_tiny_imagenet(tmp_path)
    first = next((folder / "train").rglob("*.JPEG"))
    Image.new("RGB", (32, 32)).save(first)
    assert some_text(problems("tiny_imagenet", tmp_path), "images are 32 to 64 high", "published are 64x64")
    first.unlink()
    assert some_text(problems("tiny_imagenet", tmp_path), "2 to 3 images per class, published are equally many")


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (write_cifar10, "cifar10"),
        (write_cifar100, "cifar100"),
        (write_flowers, "flowers102"),
        (write_tiny_imagenet, "tiny_imagenet"),
        (write_chaoyang, "chaoyang"),
        (write_folder, "folder"),
    ],
)
def test_datasets_are_recognised_by_their_folders(tmp_path, write, name):
    assert find_datasets(tmp_path) == []
    write(tmp_path)
    assert find_datasets(tmp_path) == [name]


def test_command_line_reports_and_exits(tmp_path, capsys):
    assert main(["--data", str(tmp_path)]) == 1
    assert "no known dataset here" in capsys.readouterr().out
    assert main(["--data", str(tmp_path / "absent")]) == 1
    assert "absent: no such folder" in capsys.readouterr().out
    write_folder(tmp_path / "tree")
    assert main(["--data", str(tmp_path / "tree")]) == 0
    assert "folder in " in capsys.readouterr().out
    assert main(["--data", str(tmp_path), "--dataset", "chaoyang"]) == 1
    assert "request it at https://" in capsys.readouterr().out
    assert main(["--dataset", "digits"]) == 0


def test_the_labels_of_a_table_are_checked(tmp_path, capsys):
    names = [f"{i}.png" for i in range(12)]
    for i, name in enumerate(names):
        Image.fromarray(np.full((6, 6, 3), 20 * min(i, 10), np.uint8)).save(tmp_path / name)  # the last two are equal
    labels = ["a", "b"] * 6
    (tmp_path / "plain.csv").write_text(
        "file,label\n" + "".join(f"{n},{x}\n" for n, x in zip(names, labels, strict=True))
    )
    assert main(["--data", str(tmp_path), "--labels", "plain.csv"]) == 0
    said = capsys.readouterr().out
    assert "10 images of 2 classes" in said and "no column split: a fifth of each class is the test part" in said
    rows = "".join(f"{n},{'a;b' if i < 11 else 'b'},train\n{n}x,,test\n" for i, n in enumerate(names))
    for name in names:
        Image.fromarray(np.random.default_rng(int(name[:-4])).integers(0, 255, (6, 6, 3), np.uint8)).save(
            tmp_path / f"{name}x", "PNG"
        )
    (tmp_path / "sets.csv").write_text("file,label,split\n" + rows)
    assert main(["--data", str(tmp_path), "--labels", "sets.csv", "--label-separator", ";"]) == 0
    said = capsys.readouterr().out
    assert "train: 12 images of 2 classes" in said and "1 images appear under two labels" in said
    assert "no column split" not in said
    assert main(["--data", str(tmp_path), "--labels", "none.csv"]) == 1
    assert "data.labels: no table at" in capsys.readouterr().out
    assert main(["--label-separator", ";"]) == 2


def test_images_that_lose_bits_are_told(tree):
    deep = np.full((6, 9), 300, np.uint16)
    Image.fromarray(deep).save(tree / "train" / "cat" / "deep.png")
    (note,) = (one for one in inspect_dataset("folder", tree) if "16 bits" in one.text)
    assert note.level == "note" and "train: 1 of 7 images have 16 bits, of which 8 are used" in note.text
    assert "deep.png" in note.text and "--data.pixels stored" in note.fix
