"""Every example runs, offline and as its first lines say, with fewer steps."""

import csv
import os
import re
import subprocess
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.processes import Program, TrainProcess

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
QUICK = ("--log.no-tensorboard", "--device", "cpu", "--precision", "fp32")


@pytest.fixture
def environment(tmp_path):
    """The package of this checkout, in a folder without earlier results."""
    return os.environ | {"PYTHONPATH": str(ROOT), "LGFAST_CACHE": str(tmp_path / "c"), "OMP_NUM_THREADS": "1"}


def run(program, arguments, folder, environment):
    code, out, err = TrainProcess(folder, *arguments, command=Program(program, folder, environment)).finish(550)
    assert code == 0, out + err
    return out


def commands(script, options, folder):
    """The arguments of every call of `lgfast` in a shell script."""
    (folder / "lgfast").write_text("#!/bin/sh\nprintf '%s\\n' \"$@\" ''\n")
    (folder / "lgfast").chmod(0o755)
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
    said = subprocess.check_output(["sh", script, *options], env=environment, text=True)
    return [call.splitlines() for call in said.strip().split("\n\n")]


def test_sweep(tmp_path, environment):
    (tmp_path / "teacher.yaml").write_text("base: digits-resnet8\nepochs: 1\n")
    quick = {"epochs": 1, "model.depth": 3, "model.embed-dim": 32, "guidance.student-layers": "0,1,2"}
    quick |= {"data.train-limit": 60, "data.test-limit": 40, "teacher.recipe": "teacher.yaml"}
    options = [word for key, value in quick.items() for word in (f"--{key}", str(value))]
    for arguments in commands(EXAMPLES / "sweep.sh", [*QUICK, *options], tmp_path):
        run("lgfast", arguments, tmp_path, environment)
    with (tmp_path / "runs" / "example-sweep" / "sweep.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 8
    assert (tmp_path / "runs" / "example-sweep-best" / "result.json").exists()


def test_fused_timm_model(tmp_path, environment):
    out = run(str(EXAMPLES / "fused_timm_model.py"), ["--steps", "60"], tmp_path, environment)
    assert "4 attention modules use lgfast.ops.short_attention" in out
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", out)]
    assert losses[-1] < losses[0] - 0.2  # it learns


def test_attention_alone(tmp_path, environment):
    out = run(str(EXAMPLES / "attention_alone.py"), [], tmp_path, environment)
    differences = [float(found) for found in re.findall(r"difference ([\d.e+-]+) of", out)]
    assert "kernel: " in out and len(differences) == 2 and max(differences) < 1e-4


def test_notebook(tmp_path, environment, monkeypatch):
    for name, value in (environment | {"EPOCHS": "1"}).items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(EXAMPLES / "digits.ipynb", as_version=4)
    (tmp_path / "teacher.yaml").write_text("base: digits-resnet8\nepochs: 1\n")
    (training,) = (cell for cell in notebook.cells if "lgfast.train(" in cell.source)
    changes = '"epochs": EPOCHS, "teacher.recipe": "teacher.yaml", "data.train_limit": 200, "data.test_limit": 100'
    quick = training.source.replace('"epochs": EPOCHS', changes)
    assert quick != training.source
    training.source = quick
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    pictures = [output for cell in notebook.cells for output in cell.get("outputs", ()) if "data" in output]
    assert sum("image/png" in output["data"] for output in pictures) == 3
