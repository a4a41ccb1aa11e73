"""lgfast from Python: runs, predictions and files as the command lines make them, and a process left as it was."""

import dataclasses
import inspect
import signal
import threading

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

import lgfast
from lgfast.assembly.run import train_run
from lgfast.config import load_recipe, replace
from tests.inference.trained import CLASSES, plain_probabilities, save_network, save_pictures
from tests.runs import TINY, StopAt, metrics, tiny_config
from tests.torch_process import run as run_python

UNGUIDED = {"guidance.weight": 0, "augment.teacher_size": 0}


def changes(folder, **more):
    return TINY | UNGUIDED | {"epochs": 2, "eval.every_epochs": 1, "run_dir": str(folder)} | more


def process_state():
    torch_state = torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()
    signals = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    return torch_state, signals, torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()


def test_two_runs_of_a_process_are_those_of_the_command_line_and_leave_nothing(tmp_path, capsys):
    before = process_state()
    first = lgfast.train("digits", changes(tmp_path / "a"), progress=False)
    second = lgfast.train(load_recipe("digits"), changes(tmp_path / "b"), progress=False)
    assert process_state() == before
    assert capsys.readouterr().out == ""
    expected = train_run(tiny_config(tmp_path, **changes(tmp_path / "c")))
    for run in (first, second):
        assert run.result.test_top1 == expected.test_top1 and metrics(run.folder) == metrics(tmp_path / "c")
    assert [row["epoch"] for row in first.metrics] == [1, 2]
    assert first.metrics[1]["val_top1"] == metrics(first.folder)[-1]["val_top1"]
    assert first.config.optim == second.config.optim and first.config.epochs == 2


def test_a_bar_shows_the_epochs(tmp_path, capsys):
    lgfast.train("digits", changes(tmp_path / "a"))
    said = capsys.readouterr()
    assert said.out == "" and "2/2" in said.err and "val_top1=" in said.err


def test_an_interrupted_run_is_saved_and_resumed_exactly(tmp_path, monkeypatch):
    whole = lgfast.train("digits", changes(tmp_path / "whole"), progress=False)
    before = process_state()
    with monkeypatch.context() as patch:
        patch.setattr("lgfast.api.training.InterruptFlag", lambda: StopAt(3))
        with pytest.raises(KeyboardInterrupt, match=r"stopped and saved as .*--resume"):
            lgfast.train("digits", changes(tmp_path / "cut"), progress=False)
    assert process_state() == before
    resumed = lgfast.train(resume=tmp_path / "cut", progress=False)
    assert metrics(resumed.folder) == metrics(whole.folder)
    assert lgfast.train(resume=resumed, progress=False).result == resumed.result


def test_a_run_may_be_trained_in_a_thread(tmp_path):
    runs = []
    thread = threading.Thread(
        target=lambda: runs.append(lgfast.train("digits", changes(tmp_path / "a", epochs=1), progress=False))
    )
    thread.start()
    thread.join()
    assert runs[0].result is not None


def test_a_wrong_key_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"unknown configuration key 'optim\.lrr'; did you mean 'optim\.lr'"):
        lgfast.train("digits", {"optim.lrr": 1})
    with pytest.raises(ValueError, match="unknown recipe 'digitz'"):
        lgfast.train("digitz")


def test_pictures_of_every_kind_are_predicted(tmp_path):
    network = save_network(tmp_path / "best.safetensors")
    paths = save_pictures(tmp_path / "pictures")
    expected = [plain_probabilities(network, path) for path in paths]
    opened = [Image.open(path) for path in paths]
    arrays = [np.asarray(image.convert("RGB")) for image in opened]
    model = lgfast.load(tmp_path, device="cpu")
    for images in (paths, [str(path) for path in paths], opened, arrays):
        found = lgfast.predict(model, images, top=9)
        for prediction, probabilities in zip(found, expected, strict=True):
            of = dict(prediction.top)
            assert [of[name] for name in CLASSES] == pytest.approx(probabilities.tolist(), abs=1e-5)
            assert prediction.label == CLASSES[probabilities.argmax()]
    assert [prediction.path for prediction in lgfast.predict(model, paths)] == [str(path) for path in paths]
    (one,) = lgfast.predict(model, arrays[0], top=9)
    assert one.top == lgfast.predict(tmp_path, [arrays[0]], top=9)[0].top
    assert lgfast.predict(model, []) == []


def test_an_opened_picture_is_turned_as_its_file_is(tmp_path):
    save_network(tmp_path / "best.safetensors")
    model = lgfast.load(tmp_path, device="cpu")
    model = dataclasses.replace(model, config=replace(model.config, {"data.exif_orientation": True}))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (20, 31, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    path = tmp_path / "turned.png"
    (by_path,), (opened,), (as_stored,) = (
        lgfast.predict(model, image, top=9) for image in (path, Image.open(path), pixels)
    )
    assert by_path.top == opened.top != as_stored.top


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), r"images\[0\]: expected a path, .* got ndarray of float32 \[4, 4, 3\]"),
        (np.zeros((4, 4), np.uint8), r"images\[0\]: expected .* got ndarray of uint8 \[4, 4\]"),
        ([np.zeros((4, 4, 3), np.uint8), None], r"images\[1\]: expected .* got NoneType"),
        ("nowhere.png", "nowhere.png"),
    ],
)
def test_what_is_no_picture_is_named(tmp_path, image, message):
    save_network(tmp_path / "best.safetensors")
    with pytest.raises((ValueError, OSError), match=message):
        lgfast.predict(tmp_path, image)


def test_a_run_is_evaluated_and_exported(tmp_path):
    run = lgfast.train("digits", changes(tmp_path / "a", **{"epochs": 1}), progress=False)
    scores = lgfast.evaluate(run, device="cpu")
    assert scores["top1"] == run.result.test_top1 and scores["images"] == 60
    written = lgfast.export(run, "safetensors", tmp_path / "w.safetensors")
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    assert lgfast.predict(written, image) == lgfast.predict(run, image)
    with pytest.raises(ValueError, match="kind: expected one of safetensors, torch, onnx, hf, got 'pt'"):
        lgfast.export(run, "pt")


@pytest.mark.parametrize("name", ["train", "predict", "evaluate", "export"])
def test_modules_of_commands_are_functions_too(name):
    module = getattr(lgfast, name)
    assert inspect.ismodule(module) and callable(module) and callable(module.main)
    assert inspect.signature(module) == inspect.signature(getattr(__import__("lgfast.api").api, name))


def test_calling_a_command_that_was_imported_first_works():
    code = "import lgfast.predict, lgfast; print(lgfast.predict is __import__('sys').modules['lgfast.predict'])"
    assert run_python(code).stdout == "True\n"
