"""Training from image files: the dali loader's run equals the resident loader's, and needs no decoded copy."""

import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from lgfast.assembly.images import load_splits
from lgfast.assembly.run import train_run
from lgfast.assembly.teachers import teacher_folder
from lgfast.data import load_files
from lgfast.runtime.interrupt import Interrupted, InterruptFlag
from lgfast.train import main
from tests.data.layouts import write_chaoyang, write_cifar100, write_flowers, write_tiny_imagenet
from tests.ops.real_images import photographs
from tests.runs import metrics, tiny_config

pytest.importorskip("nvidia.dali", reason="needs the extra [dali]")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Photographs of two classes and several sizes as JPEG files, 40 to train on and 12 to test on."""
    root = tmp_path_factory.mktemp("photographs")
    for split, count in (("train", 40), ("test", 12)):
        for i in range(count):
            path = root / split / ("lake" if i % 2 else "temple") / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            crop = photographs()[i % 2][5 * i : 5 * i + 60 + i, 10 * i : 10 * i + 90 - i]
            Image.fromarray(crop).save(path, quality=90)
    return root


def config_of(folder, root, name, loader, **changes):
    shape = {"data.dataset": "folder", "data.root": str(root), "data.train_limit": 36, "data.test_limit": 10}
    shape |= {"data.batch_size": 6, "epochs": 2, "log.every_steps": 1, "augment.rand_augment": "rand-m9-mstd0.5-inc1"}
    config = tiny_config(folder, **shape | {"data.loader": loader, "run_dir": str(folder / name)} | changes)
    with (folder / "teacher.yaml").open("a") as recipe:
        recipe.write("data: {batch_size: 6}\n")
    return config


def test_run_equals_resident_also_when_resumed(root, tmp_path):
    expected = train_run(config_of(tmp_path, root, "resident", "resident"))
    config = config_of(tmp_path, root, "dali", "dali", **{"teacher.checkpoint": expected.teacher_run})
    flag = InterruptFlag()
    flag.requested = True
    with pytest.raises(Interrupted):  # after the first step of the epoch
        train_run(config, interrupt=flag)
    result = train_run(config, resume=True)
    assert metrics(config.run_dir) == metrics(expected.run_dir)
    assert (result.test_top1, result.last_test_top1, result.val_top1) == (
        expected.test_top1, expected.last_test_top1, expected.val_top1
    )  # fmt: skip


def test_teacher_is_trained_from_files_and_nothing_is_decoded_to_disk(root, tmp_path, monkeypatch):
    monkeypatch.setenv("LGFAST_CACHE", str(tmp_path / "decoded"))
    config = config_of(tmp_path, root, "run", "dali", max_steps=1)
    result = train_run(config)
    assert Path(result.teacher_run) == teacher_folder(config, load_splits(config).train)  # found again by its files
    assert not list(tmp_path.glob("decoded/**/*.lgfast"))


def test_splits_are_those_of_the_decoded_set(root, tmp_path, monkeypatch):
    monkeypatch.setenv("LGFAST_CACHE", str(tmp_path))
    files, decoded = (load_splits(config_of(tmp_path, root, "run", loader)) for loader in ("dali", "resident"))
    for name in ("train", "select", "test"):
        ours, theirs = getattr(files, name), getattr(decoded, name)
        assert ours.labels.tolist() == theirs.labels.tolist() and ours.class_names == theirs.class_names
    assert len({files.train.content_hash, files.select.content_hash, files.test.content_hash}) == 3


def test_hash_follows_the_content_and_not_the_place(root, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    assert load_files("folder", copy).content_hash == load_files("folder", root).content_hash
    path = copy / "train" / "lake" / "1.jpg"
    path.write_bytes(path.read_bytes() + b"\0")
    assert load_files("folder", copy).content_hash != load_files("folder", root).content_hash


@pytest.mark.parametrize(
    ("name", "write"),
    [("flowers102", write_flowers), ("tiny_imagenet", write_tiny_imagenet), ("chaoyang", write_chaoyang)],
)
def test_every_dataset_of_files_is_read(name, write, tmp_path):
    write(tmp_path)
    for split in ("train", "test"):
        files = load_files(name, tmp_path, split)
        assert len(files) == len(files.paths) > 0 and files.labels.max() < files.num_classes


@pytest.mark.parametrize("name", ["cifar100", "digits"])
def test_what_is_not_stored_as_files_names_another_loader(name, tmp_path, capsys):
    write_cifar100(tmp_path)
    arguments = ["--data.dataset", name, "--data.root", str(tmp_path), "--data.loader", "dali", "--device", "cpu"]
    assert main(arguments) == 2
    message = f"{name} is not stored as image files, which the dali loader reads; use data.loader=resident"
    assert message in capsys.readouterr().err


def test_missing_dali_says_how_to_install_it(root, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    arguments = ["--data.dataset", "folder", "--data.root", str(root), "--data.loader", "dali", "--device", "cpu"]
    assert main(arguments) == 2
    assert "data.loader: dali needs NVIDIA DALI: pip install lgfast[dali]" in capsys.readouterr().err
