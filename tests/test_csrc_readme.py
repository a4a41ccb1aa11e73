"""csrc/README.md names files that are there; operations made after its example have the same layers."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "csrc" / "README.md").read_text()
LAYERS = re.findall(r"^\|.*\| `((?:csrc|lgfast)/\S*bias_gelu\S*)` \|$", TEXT, flags=re.MULTILINE)


def test_the_files_it_names_exist():
    names = re.findall(r"`([\w/.]+\.(?:h|cuh|cu|cpp|py|inc))`", TEXT)
    files = {str(path.relative_to(ROOT)) for top in ("csrc", "lgfast", "tests") for path in (ROOT / top).rglob("*.*")}
    missing = [name for name in names if not any(f"/{path}".endswith(f"/{name}") for path in files | {"setup.py"})]
    assert len(names) > 20 and missing == []


@pytest.mark.parametrize("op", ["bias_gelu", "add_layer_norm", "feature_mse", "flat_adamw"])
def test_operations_have_the_layers_of_the_example(op):
    assert len(LAYERS) == 8
    assert all((ROOT / layer.replace("bias_gelu", op)).exists() for layer in LAYERS)
