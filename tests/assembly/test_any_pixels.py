"""Runs on images of other channels and depths than 8-bit RGB, from the files to predictions."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

import lgfast
from lgfast.assembly.images import load_images, settle
from lgfast.assembly.run import train_run
from lgfast.assembly.teachers import load_teacher, teacher_config
from lgfast.config import load_yaml, replace
from lgfast.doctor.__main__ import main as doctor
from lgfast.evaluate import evaluate_checkpoint
from lgfast.export import export
from lgfast.predict import main as predict
from lgfast.records.answers import read_answers
from lgfast.records.checkpoint import CheckpointError
from lgfast.reports.answers import picture, write_mistakes
from lgfast.reports.run_page import answered
from lgfast.runtime.interrupt import Interrupted
from tests.runs import StopAt, tiny_config

SIDE, EPOCHS, CLASSES = 12, 6, ("high", "low")
FOLDER = {
    "data.dataset": "folder", "data.pixels": "stored", "data.train_limit": 0, "data.test_limit": 0,
    "eval.every_epochs": 1, "augment.rand_augment": "rand-m6-n2", "augment.crop_scale": "0.5,1",
    "optim.warmup_epochs": 1, "optim.lr": 3e-3, "model.drop_path_rate": 0, "augment.erase_prob": 0.5,
}  # fmt: skip


def write_classes(root, make, count=30):
    """<root>/<class>/<i>.npy, or .png of one channel."""
    generator = np.random.default_rng(0)
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        for i in range(count):
            image = make(generator, name == "high")
            if image.ndim == 2:
                Image.fromarray(image).save(root / name / f"{i}.png")
            else:
                np.save(root / name / f"{i}.npy", image)
    return root


def low_byte(generator, is_high):
    """16 bits of which the upper 8 are the same in every pixel."""
    low = generator.integers(0, 60, (SIDE, SIDE)) + 180 * is_high
    return (100 * 256 + low).astype(np.uint16)


def five_bands(generator, is_high):
    """Reflectances of noise; the last band is brighter in one class."""
    bands = generator.integers(0, 10_000, (SIDE, SIDE, 5))
    bands[..., 4] = bands[..., 4] // 3 + 6000 * is_high
    return bands.astype(np.uint16)


def folder_config(tmp_path, root, **changes):
    return tiny_config(tmp_path, **FOLDER | {"data.root": str(root)} | changes)


@pytest.fixture(scope="module")
def bands(tmp_path_factory):
    """(folder of five-band arrays, a guided run on them, its result)."""
    folder = tmp_path_factory.mktemp("bands")
    root = write_classes(folder / "images", five_bands)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = train_run(folder_config(folder, root, epochs=EPOCHS))
    return root, folder / "run", result


@pytest.mark.parametrize("pixels", ["stored", "rgb"])
def test_what_differs_in_the_low_byte_alone_is_learnt_where_it_is_kept(tmp_path, pixels):
    root = write_classes(tmp_path / "images", low_byte)
    changes = {"guidance.weight": 0, "augment.teacher_size": 0, "epochs": EPOCHS, "data.pixels": pixels}
    result = train_run(folder_config(tmp_path, root, **changes))
    assert result.test_top1 == (100 if pixels == "stored" else 50)


def test_a_class_in_the_fifth_band_is_learnt_with_a_teacher(bands):
    _, run, result = bands
    assert result.test_top1 == 100
    config = load_yaml(run / "config.yaml")
    assert config.data.pixels == "uint16x5" and config.channels == 5
    images = load_images(config, "train")
    train = [np.load(path) for path in images.paths]
    values = np.stack(train).reshape(-1, 5).astype(float)
    low, high = config.augment.value_range
    assert values.min() <= low < high <= values.max()  # a fifth of the training images chose the epoch
    assert np.allclose(config.augment.mean, (values.mean(0) - low) / (high - low), atol=0.02)
    assert load_file(run / "best.safetensors")["patch_embed.proj.weight"].shape[1] == 5
    teacher = load_file(Path(result.teacher_run) / "best.safetensors")
    assert teacher["conv1.weight"].shape[1] == 5
    assert teacher_config(config).augment.mean == config.augment.mean
    assert evaluate_checkpoint(str(run))["top1"] == 100


def test_a_run_on_kept_pixels_continues_to_the_same_bits(bands, tmp_path):
    root, run, _ = bands
    kept = {"teacher.cache": str(run.parent / "cache"), "teacher.recipe": str(run.parent / "teacher.yaml")}
    config = replace(folder_config(tmp_path, root, epochs=EPOCHS, **{"log.save_every_steps": 1}), kept)
    with pytest.raises(Interrupted):
        train_run(config, interrupt=StopAt(9))
    train_run(load_yaml(tmp_path / "run" / "config.yaml"), resume=True)
    whole, continued = (load_file(folder / "last.safetensors") for folder in (run, tmp_path / "run"))
    assert whole.keys() == continued.keys() and all(torch.equal(whole[name], continued[name]) for name in whole)


def test_predictions_take_pictures_of_the_same_kind_alone(bands, tmp_path, capsys):
    root, run, _ = bands
    for path in sorted(root.glob("*/*.npy"))[::7]:
        (tmp_path / "new").mkdir(exist_ok=True)
        np.save(tmp_path / "new" / f"{path.parent.name}-{path.stem}.npy", np.load(path))
    assert predict([str(run), str(tmp_path / "new"), "--out", str(tmp_path / "a.csv"), "--device", "cpu"]) == 0
    rows = [line.split(",") for line in (tmp_path / "a.csv").read_text().splitlines()[1:]]
    assert len(rows) == 9 and all(f"/{row[1]}-" in row[0] for row in rows)
    np.save(tmp_path / "new" / "four.npy", np.zeros((SIDE, SIDE, 4), np.uint16))
    Image.new("RGB", (8, 8)).save(tmp_path / "new" / "rgb.png")
    assert predict([str(run), str(tmp_path / "new"), "--out", str(tmp_path / "b.csv"), "--device", "cpu"]) == 1
    error = capsys.readouterr().err
    assert "four.npy: cannot be decoded (its pixels are uint16x4, expected uint16x5 (data.pixels))" in error
    assert "rgb.png: cannot be decoded (its pixels are uint8x3, expected uint16x5" in error
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()
    array = np.load(next(root.glob("high/*.npy")))
    assert lgfast.predict(run, array)[0].label == "high"
    with pytest.raises(ValueError, match=r"images\[0\]: expected .* a uint16 array \[h, w, 5\], got ndarray of uint8"):
        lgfast.predict(run, array.astype(np.uint8))


def test_exported_files_have_the_channels(bands, tmp_path):
    root, run, _ = bands
    export(run, "hf", tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [5, 8, 8] and len(config["pretrained_cfg"]["mean"]) == 5
    model = timm.create_model(f"local-dir:{tmp_path}/hf", pretrained=True).eval()
    own = lgfast.load(run, device="cpu")
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in own.logits.state_dict().items())
    assert "pixels uint16x5, whose values" in (tmp_path / "hf" / "README.md").read_text()
    array = np.load(next(root.glob("low/*.npy")))
    assert lgfast.predict(tmp_path / "hf" / "model.safetensors", array)[0].label == "low"


def test_pictures_of_mistakes_are_rendered_and_the_page_says_how(bands, tmp_path):
    _, run, _ = bands
    config, answers = load_yaml(run / "config.yaml"), read_answers(run / "test")
    images = load_images(config, "test")
    write_mistakes(answers, images, [0, 1], tmp_path / "mistakes.png")
    assert Image.open(tmp_path / "mistakes.png").mode == "RGB"
    assert picture(images, 1).shape == (SIDE, SIDE, 3) and picture(images, 1).dtype == np.uint8
    (shown,) = answered(tmp_path, answers, config.data.pixels)["results"]
    assert "Pixels are uint16x5: pictures show their first three channels as red, green and blue, from" in shown.caption


def test_the_doctor_measures_what_the_run_keeps(bands, tmp_path, capsys):
    root, _, _ = bands
    assert doctor(["--data", str(root), "--pixels", "stored"]) == 0
    said = capsys.readouterr().out
    config = settle(folder_config(tmp_path, root, **{"eval.protocol": "paper"}))
    mean = ", ".join(f"{value:.4g}" for value in config.augment.mean)
    low, high = config.augment.value_range
    assert f"train: pixels are uint16x5: mean {mean}; standard deviation" in said
    assert f"of values from {low:g} to {high:g} as 0 to 1" in said
    write_classes(tmp_path / "images", low_byte, 3)
    np.save(tmp_path / "images" / "low" / "x.npy", np.zeros((4, 4, 2)))
    assert doctor(["--data", str(tmp_path / "images"), "--pixels", "stored"]) == 1
    said = capsys.readouterr().out
    assert "images differ in their pixels: 6 are uint16x1 (" in said and "1 are float32x2 (" in said and "x.npy" in said


def test_a_teacher_of_other_channels_is_refused(bands, tmp_path):
    _, _, result = bands
    config = settle(folder_config(tmp_path, write_classes(tmp_path / "images", low_byte, 4)))
    config = replace(config, {"teacher.checkpoint": str(result.teacher_run), "precision": "fp32"})
    with pytest.raises(CheckpointError, match=r"takes images of 5 channels, these have 1; use teacher.checkpoint=auto"):
        load_teacher(config, Path(result.teacher_run), load_images(config, "train"), torch.device("cpu"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.dataset": "digits"}, "data.pixels: digits is 8-bit RGB"),
        ({"data.loader": "dali"}, "data.loader: dali decodes 8-bit RGB; use data.loader=resident"),
        ({"augment.color_jitter": "0,0,0,0.1"}, "augment.color_jitter: the hue is of 8-bit RGB"),
        ({"data.pixels": "rgb", "augment.mean": "0.5", "augment.std": "0.2"}, "augment.mean: expected 3 values"),
        ({"data.pixels": "rgb", "augment.value_range": "0,1"}, "augment.value_range: 8-bit RGB has 0 to 255"),
        ({"augment.value_range": "1,1"}, "augment.value_range: expected the smaller value first"),
        ({"data.pixels": "uint16x2"}, "augment.mean: expected 2 values, as data.pixels=uint16x2 has, got 3"),
        ({"data.pixels": "grey"}, "data.pixels: expected rgb, stored, or a format such as uint8x1"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        folder_config(tmp_path, tmp_path, **changes)


def test_means_that_are_set_are_kept(bands, tmp_path):
    root, _, _ = bands
    own = {"augment.mean": "0.1,0.2,0.3,0.4,0.5", "augment.std": "1,1,1,1,2", "augment.value_range": "0,10000"}
    spec = settle(folder_config(tmp_path, root, **own)).augment
    assert spec.mean == (0.1, 0.2, 0.3, 0.4, 0.5) and spec.std == (1, 1, 1, 1, 2) and spec.value_range == (0, 10000)
    with pytest.raises(ValueError, match=r"augment.mean: expected 5 values, as the images are uint16x5, got 2"):
        settle(folder_config(tmp_path, root, **own | {"augment.mean": "0.1,0.2", "augment.std": "1,1"}))
