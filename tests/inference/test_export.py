"""Exported files compute what the network computes, in other programs."""

import functools
import json
import shutil

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lgfast.export import SUFFIXES, main
from lgfast.predict import main as predict
from tests.inference.trained import CLASSES, CONFIG, save_network, save_pictures

SIZE = CONFIG.augment.image_size


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def network(folder):
    return save_network(folder / "best.safetensors")


@pytest.fixture(scope="module")
def images():
    return torch.randn(5, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def export(folder, network):
    """Gives the file of each format, exported once; tests must not change it."""

    @functools.cache
    def exported(kind):
        path = folder / ("exported" + SUFFIXES[kind])
        assert main([str(folder), "--format", kind, "--out", str(path)]) == 0
        return path

    return exported


def test_onnx_gives_the_logits_for_any_batch(export, network, images):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(export("onnx")), providers=["CPUExecutionProvider"])
    for count in (1, 5):
        (found,) = session.run(["logits"], {"images": images[:count].numpy()})
        expected = network(images[:count]).detach().numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * max(1.0, abs(expected).max()))


def test_an_onnx_file_that_computes_something_else_is_not_kept(folder, network, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    from lgfast.inference import exporting

    monkeypatch.setattr(exporting, "ONNX_TOLERANCE", -1.0)
    assert main([str(folder), "--format", "onnx", "--out", str(folder / "wrong.onnx")]) == 2
    assert "onnxruntime's logits differ from PyTorch's" in capsys.readouterr().err
    assert not [path for path in folder.iterdir() if "wrong" in path.name]


def test_a_program_needs_pytorch_alone_and_takes_any_batch(export, network, images):
    path = export("torch")
    program = torch.export.load(str(path))
    assert not [node for node in program.graph.nodes if "lgfast" in str(node.target)]
    for count in (1, 5):
        torch.testing.assert_close(program.module()(images[:count]), network(images[:count]), rtol=1e-4, atol=1e-5)


def test_weights_load_in_timm_by_its_own_means(export, network, images):
    path = export("safetensors")
    shape = CONFIG.model.shape_overrides()
    model = timm.create_model(
        CONFIG.model.name, num_classes=len(CLASSES), img_size=SIZE, checkpoint_path=str(path), **shape
    )
    torch.testing.assert_close(model.eval()(images), network(images), rtol=1e-4, atol=1e-5)
    with safe_open(str(path), framework="pt") as file:
        assert json.loads(file.metadata()["lgfast"])["class_names"] == list(CLASSES)


def test_a_hub_folder_loads_in_timm_with_its_classes(export, network, images):
    path = export("hf")
    model = timm.create_model(f"local-dir:{path}", pretrained=True)
    torch.testing.assert_close(model.eval()(images), network(images), rtol=1e-4, atol=1e-5)
    assert json.loads((path / "config.json").read_text())["label_names"] == list(CLASSES)
    card = (path / "README.md").read_text()
    assert card.startswith("---\n") and "license:" in card and all(name in card for name in CLASSES)
    data = timm.data.resolve_model_data_config(model)
    assert (tuple(data["mean"]), data["input_size"][1]) == (tuple(CONFIG.augment.mean), SIZE)


@pytest.mark.parametrize("kind", ["torch", "onnx", "safetensors"])
def test_exported_files_predict_as_the_run_does(export, folder, tmp_path, kind):
    pytest.importorskip("onnxruntime")
    paths = [str(path) for path in save_pictures(tmp_path / "pictures")]
    outs = tmp_path / "run.jsonl", tmp_path / "exported.jsonl"
    for source, out in zip((folder / "best.safetensors", export(kind)), outs, strict=True):
        assert predict([str(source), *paths, "--out", str(out), "--top", "3", "--device", "cpu"]) == 0
    rows = [[json.loads(line) for line in out.read_text().splitlines()] for out in outs]
    for a, b in zip(*rows, strict=True):
        assert [entry["class"] for entry in a["top"]] == [entry["class"] for entry in b["top"]]
        assert [entry["probability"] for entry in a["top"]] == pytest.approx(
            [entry["probability"] for entry in b["top"]], abs=1e-4
        )


@pytest.mark.parametrize("name", ["torn.pt2", "torn.onnx", "torn.safetensors"])
def test_a_torn_file_is_one_line(tmp_path, capsys, name):
    pytest.importorskip("onnxruntime")
    (picture,) = save_pictures(tmp_path / "pictures", 1)
    (tmp_path / name).write_bytes(b"\x80\x02torn")
    assert predict([str(tmp_path / name), str(picture), "--device", "cpu"]) == 2
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith("error: ") and name in error[-1]


@pytest.mark.parametrize("kind", ["onnx", "safetensors", "torch"])
def test_a_changed_byte_of_the_weights_is_noticed(export, folder, tmp_path, capsys, kind):
    pytest.importorskip("onnxruntime")
    path = tmp_path / ("changed" + SUFFIXES[kind])
    shutil.copy(export(kind), path)
    weight = load_file(folder / "best.safetensors")["norm.bias"].numpy().tobytes()
    content = path.read_bytes()
    assert content.count(weight) == 1
    path.write_bytes(content.replace(weight, bytes([weight[0] ^ 1]) + weight[1:]))
    (picture,) = save_pictures(tmp_path / "pictures", 1)
    assert predict([str(path), str(picture), "--device", "cpu"]) == 2
    assert "its content does not match its digest" in capsys.readouterr().err
