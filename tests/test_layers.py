"""Dependencies point down: read from the imports of every module, those inside functions included."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "lgfast"
# From the ground up: a room may import from the rooms that stand before it, and from itself.
ROOMS = (
    "_native", "version", "_extension", "spec", "ops", "runtime", "config", "data", "models",
    "fusion", "guidance", "optim", "records", "step", "training", "assembly", "inference", "reports", "evaluate",
    "attention_distance", "report", "reproduce", "sweep", "doctor", "train", "predict", "export", "api",
    "completion", "__main__",
)  # fmt: skip


def module_name(path):
    parts = ("lgfast", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path, modules):
    """Modules of the package that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= inner & modules or {node.module}  # a part of a package does not need the whole of it
    return names & modules


@pytest.fixture(scope="module")
def imports():
    """module -> the modules of the package that it imports; `lgfast` itself names what it imports at first use."""
    paths = {module_name(path): path for path in PACKAGE.rglob("*.py")}
    found = {name: imported(path, set(paths)) - {"lgfast", name} for name, path in paths.items() if name != "lgfast"}
    assert (
        "lgfast.ops.feature_mse" in found["lgfast.ops"] and "lgfast.runtime.cores" in found["lgfast.doctor.environment"]
    )
    return found


def room(module):
    """The name directly under the package."""
    return module.split(".")[1]


def test_imports_have_no_circle(imports):
    left = dict(imports)
    while left:
        free = [name for name, needs in left.items() if not needs & left.keys()]
        assert free, f"a circle among {sorted(left)}"
        for name in free:
            del left[name]


def test_every_room_has_its_place(imports):
    assert {room(name) for name in imports} == set(ROOMS)


def test_nothing_imports_what_lies_above_it(imports):
    upward = {
        (name, needed)
        for name, needs in imports.items()
        for needed in needs
        if ROOMS.index(room(needed)) > ROOMS.index(room(name))
    }
    assert not upward


@pytest.mark.parametrize(
    ("apart", "allowed"),
    [
        ("ops", {"_extension", "spec"}),  # other projects import them
        ("models", {"runtime"}),
        ("config", {"spec", "runtime"}),  # reading a configuration loads no native library
    ],
)
def test_rooms_of_use_elsewhere_need_little(imports, apart, allowed):
    needed = {room(needed) for name, needs in imports.items() if room(name) == apart for needed in needs}
    assert needed - {apart} <= allowed


def test_the_root_shows_a_dozen_names_beside_the_rooms():
    assert len(list(PACKAGE.glob("*.py"))) <= 12
