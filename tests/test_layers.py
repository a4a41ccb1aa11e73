"""Dependencies point down: read from the imports of every module, those inside functions included."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "lgfast"
COMMAND_LINES = ("train", "evaluate", "reproduce", "report", "doctor", "sweep")
AROUND_THE_STEP = (
    "loop", "step", "optim", "flat_adamw", "evaluation", "saving", "checkpoint", "run_log", "console",
    "result",
)  # fmt: skip
ASSEMBLY = ("build", "teachers", "targets", "run")


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
        "lgfast.ops.feature_mse" in found["lgfast.ops"] and "lgfast.data.decode" in found["lgfast.doctor.environment"]
    )
    return found


def part(module):
    """The module's place directly under the package."""
    return module.split(".")[1]


def test_imports_have_no_circle(imports):
    left = dict(imports)
    while left:
        free = [name for name, needs in left.items() if not needs & left.keys()]
        assert free, f"a circle among {sorted(left)}"
        for name in free:
            del left[name]


@pytest.mark.parametrize(
    ("parts", "forbidden"),
    [
        (("models", "data"), ("guidance", *AROUND_THE_STEP, *ASSEMBLY, *COMMAND_LINES)),
        (("guidance", "config", "fusion"), (*AROUND_THE_STEP, *ASSEMBLY, *COMMAND_LINES)),
        (AROUND_THE_STEP, (*ASSEMBLY, *COMMAND_LINES)),
        (ASSEMBLY, COMMAND_LINES),
    ],
)
def test_nothing_imports_what_lies_above_it(imports, parts, forbidden):
    upward = {
        (name, needed)
        for name, needs in imports.items()
        if part(name) in parts
        for needed in needs
        if part(needed) in forbidden
    }
    assert not upward


def test_operations_import_nothing_else_of_the_package(imports):
    needed = set().union(*(needs for name, needs in imports.items() if part(name) == "ops"))
    assert {name for name in needed if part(name) != "ops"} == {"lgfast._extension"}
