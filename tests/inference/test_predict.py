"""`lgfast.predict` gives for every picture what Pillow and PyTorch give, and names those it cannot read."""

import csv
import json
import re
import sys

import pytest
import torch

from lgfast.config import to_dict
from lgfast.predict import main
from lgfast.records.checkpoint import save_weights
from tests.inference.trained import CLASSES, CONFIG, plain_probabilities, save_network, save_pictures
from tests.torch_process import run as run_python


@pytest.fixture
def network(tmp_path):
    return save_network(tmp_path / "best.safetensors")


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_probabilities_are_those_of_pillow_and_pytorch(tmp_path, network):
    paths = save_pictures(tmp_path / "pictures")
    out = tmp_path / "out" / "predictions.csv"
    assert main([str(tmp_path), str(tmp_path / "pictures"), "--out", str(out), "--top", "3", "--device", "cpu"]) == 0
    rows = read_csv(out)
    assert [row["path"] for row in rows] == [str(path) for path in paths]
    for path, row in zip(paths, rows, strict=True):
        values, labels = plain_probabilities(network, path).sort(descending=True)
        assert [row["class"], row["class_2"], row["class_3"]] == [CLASSES[label] for label in labels]
        found = [float(row[name]) for name in ("probability", "probability_2", "probability_3")]
        assert found == pytest.approx(values.tolist(), abs=1e-5)


def test_flipping_averages_over_the_mirror_image(tmp_path, network):
    (path,) = save_pictures(tmp_path / "pictures", 1)
    from PIL import Image, ImageOps

    mirrored = tmp_path / "mirrored.png"
    ImageOps.mirror(Image.open(path)).save(mirrored)
    expected = (plain_probabilities(network, path) + plain_probabilities(network, mirrored)) / 2
    out = tmp_path / "predictions.jsonl"
    main([str(tmp_path), str(path), "--out", str(out), "--tta", "flip", "--top", "9", "--device", "cpu"])
    row = json.loads(out.read_text())
    found = {entry["class"]: entry["probability"] for entry in row["top"]}
    assert [found[name] for name in CLASSES] == pytest.approx(expected.tolist(), abs=1e-5)
    assert row["class"] == max(found, key=found.get)


def test_broken_pictures_are_named_and_the_others_predicted(tmp_path, network, capsys):
    paths = save_pictures(tmp_path / "pictures")
    paths[1].write_bytes(paths[1].read_bytes()[:40])
    paths[3].write_bytes(b"")
    out = tmp_path / "predictions.csv"
    assert main([str(tmp_path), *map(str, paths), "--out", str(out), "--device", "cpu"]) == 1
    assert [row["path"] for row in read_csv(out)] == [str(paths[i]) for i in (0, 2, 4)]
    text = capsys.readouterr()
    assert "3 of 5 pictures" in text.out
    assert [str(paths[i]) in line for i, line in zip((1, 3), text.err.splitlines(), strict=True)] == [True, True]


def test_folders_lists_and_the_terminal(tmp_path, network, capsys):
    paths = save_pictures(tmp_path / "pictures" / "deep" / "er", 2)
    listing = tmp_path / "list.txt"
    listing.write_text("".join(f"{path}\n" for path in paths) + "\n")
    assert main([str(tmp_path), str(tmp_path / "pictures"), f"@{listing}", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "path,class,probability"
    assert [line.split(",")[0] for line in lines[1:]] == [str(path) for path in paths * 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MODEL", "nowhere"], "PATHS: nowhere does not exist"),
        (["MODEL", "EMPTY"], "holds no pictures"),
        (["MODEL", "@nolist"], "cannot read the list nolist"),
        (["MODEL", "PICTURE", "--top", "0"], "--top: expected 1 or more, got 0"),
        (["MODEL", "PICTURE", "--out", "x.txt"], "--out: expected a name that ends in .csv or .jsonl"),
        (["nowhere", "PICTURE"], "nowhere"),
        (["MODEL", ""], "PATHS: expected picture files, folders of them, or @LIST, got an empty name"),
        (["MODEL", "@LOOP"], "names itself"),
        (["MODEL", "@NOTHING"], "names no pictures"),
        (["MODEL", "PICTURE", "--out", "PICTURE/x.csv"], "0.png: File exists"),
        (["NAN", "PICTURE"], "head.bias holds numbers that are not finite: its training had diverged"),
        (["MODEL", "~nobody-of-this-name/x"], "no home folder"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, network, capsys, arguments, message):
    (picture,) = save_pictures(tmp_path / "pictures", 1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop.txt").write_text(f"{picture}\n@{tmp_path}/loop.txt\n")
    (tmp_path / "nothing.txt").write_text("\n\n")
    weights = network.state_dict()
    weights["head.bias"][1] = torch.nan
    save_weights(tmp_path / "nan.safetensors", weights, {"config": to_dict(CONFIG), "class_names": list(CLASSES)})
    names = {"MODEL": tmp_path, "PICTURE": picture, "EMPTY": tmp_path / "empty", "LOOP": tmp_path / "loop.txt"}
    names |= {"NOTHING": tmp_path / "nothing.txt", "NAN": tmp_path / "nan.safetensors"}
    pattern = re.compile("|".join(rf"\b{name}\b" for name in names))
    assert main([pattern.sub(lambda found: str(names[found[0]]), argument) for argument in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


def test_lists_of_other_systems_are_read(tmp_path, network, capsys):
    (path,) = save_pictures(tmp_path / "pictures", 1)
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + f"{path}\r\n".encode())
    assert main([str(tmp_path), f"@{tmp_path}/list.txt", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith(f"{path},")


def test_names_steer_no_terminal_and_files_hold_them_as_they_are(tmp_path, network, monkeypatch, capsys):
    sound, broken = tmp_path / "a\x1b[2J\n.png", tmp_path / "b\x1b[2J.png"
    save_pictures(tmp_path / "pictures", 1)[0].rename(sound)
    broken.write_bytes(b"")
    assert main([str(tmp_path), str(sound), "--out", str(tmp_path / "out.csv"), "--device", "cpu"]) == 0
    assert read_csv(tmp_path / "out.csv")[0]["path"] == str(sound)
    capsys.readouterr()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main([str(tmp_path), str(sound), str(broken), "--device", "cpu"]) == 1
    text = capsys.readouterr()
    assert "\x1b" not in text.out + text.err and f"{tmp_path}/a\\x1b[2J\\n.png" in text.out
    assert text.err == f"left out: {tmp_path}/b\\x1b[2J.png: cannot be decoded (no image of a kind that is read)\n"


def test_a_thousand_pictures_take_few_at_a_time(tmp_path, network, monkeypatch):
    import lgfast.inference.pictures as pictures

    (path,) = save_pictures(tmp_path / "pictures", 1)
    monkeypatch.setattr(pictures, "CHUNK", 3)
    chunks = list(pictures.decode_pictures([path] * 8, pictures.Decoding(), []))
    assert [len(images) for _, images in chunks] == [3, 3, 2]


def test_help_does_not_load_a_model():
    code = "import sys, torch, lgfast.predict; sys.exit(lgfast.predict.main(['--help']) or torch.cuda.is_initialized())"
    done = run_python(code)
    assert done.returncode == 0 and "--tta" in done.stdout, done.stderr
