"""Every example runs, offline and as its first lines say, with fewer steps."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image
from sklearn.datasets import load_digits

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
QUICK = ("--log.no-tensorboard", "--device", "cpu", "--precision", "fp32")


@pytest.fixture
def environment(tmp_path):
    """The package of this checkout, and its command `lgfast`, in a folder without earlier results."""
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "lgfast").write_text(f'#!/bin/sh\nexec {sys.executable} -m lgfast "$@"\n')
    (commands / "lgfast").chmod(0o755)
    changes = {"PATH": f"{commands}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "LGFAST_CACHE": str(tmp_path / "c")}
    return os.environ | changes | {"OMP_NUM_THREADS": "1"}


def run(command, folder, environment):
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def save_digits(folder, numbers, per_class):
    """Scans of a few digits as a folder of images for each class."""
    digits = load_digits()
    for number in numbers:
        (folder / f"digit-{number}").mkdir(parents=True)
        for place, scan in enumerate(digits.images[digits.target == number][:per_class]):
            Image.fromarray((scan * 15.9).astype("uint8")).save(folder / f"digit-{number}" / f"{place}.png")


def test_own_photos(tmp_path, environment):
    save_digits(tmp_path / "photos", (0, 1), 40)
    (tmp_path / "teacher.yaml").write_text("base: photos-resnet8\nepochs: 1\n")
    script = ["sh", str(EXAMPLES / "own_photos.sh"), "photos", "photos/digit-1", *QUICK]
    quick = ["--epochs", "1", "--model.depth", "2", "--set", "guidance.student_layers=", "--teacher.recipe"]
    run([*script, *quick, "teacher.yaml"], tmp_path, environment)
    with (tmp_path / "runs" / "own-photos" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 40 and {row["class"] for row in rows} <= {"digit-0", "digit-1"}
    assert all(abs(float(row["probability"]) + float(row["probability_2"]) - 1) < 1e-5 for row in rows)


def test_sweep(tmp_path, environment):
    script = ["sh", str(EXAMPLES / "sweep.sh"), *QUICK, "--epochs", "1", "--model.depth", "3", "--data.train-limit"]
    run([*script, "100", "--guidance.student-layers", "0,1,2"], tmp_path, environment)
    with (tmp_path / "runs" / "example-sweep" / "sweep.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 8
    assert (tmp_path / "runs" / "example-sweep-best" / "result.json").exists()


def test_fused_timm_model(tmp_path, environment):
    out = run([sys.executable, str(EXAMPLES / "fused_timm_model.py"), "--steps", "60"], tmp_path, environment)
    assert "4 attention modules use lgfast.ops.short_attention" in out
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", out)]
    assert losses[-1] < losses[0] - 0.2  # it learns


def test_attention_alone(tmp_path, environment):
    out = run([sys.executable, str(EXAMPLES / "attention_alone.py")], tmp_path, environment)
    differences = [float(found) for found in re.findall(r"difference ([\d.e+-]+) of", out)]
    assert "kernel: " in out and len(differences) == 2 and max(differences) < 1e-4


def test_notebook(tmp_path, environment, monkeypatch):
    for name, value in (environment | {"EPOCHS": "1"}).items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(EXAMPLES / "digits.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    pictures = [output for cell in notebook.cells for output in cell.get("outputs", ()) if "data" in output]
    assert sum("image/png" in output["data"] for output in pictures) == 3
