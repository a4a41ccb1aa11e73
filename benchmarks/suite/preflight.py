"""Say what the machine lacks and what that stops; install wheels that are given by path."""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.suite.build import CUDA_PROGRAMS
from benchmarks.suite.parts import Command

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[2]

# Name of a piece -> module that can be imported if the piece is there, or program (in parentheses) on PATH.
PIECES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "timm": "timm",
    "numpy": "numpy",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "tqdm": "tqdm",
    "packaging": "packaging",
    "safetensors": "safetensors",
    "tyro": "tyro",
    "scikit-learn": "sklearn",
    "pytest": "pytest",
    "setuptools": "setuptools",
    "pybind11": "pybind11",
    "cmake": "(cmake)",
    "ninja": "(ninja)",
    "nvcc": "(nvcc)",
    "c++": "(c++)",
    "ncu": "(ncu)",
    "compute-sanitizer": "(compute-sanitizer)",
    "dali": "nvidia.dali",
    "apex": "amp_C",
    "flash-attn-4": "flash_attn.cute",
    "optuna": "optuna",
    "hypothesis": "hypothesis",
    "matplotlib": "matplotlib",
    "scipy": "scipy",
}
LIBRARY = ("torch", "torchvision", "timm", "numpy", "pillow", "pyyaml", "tqdm")  # what `import lgfast` and data need
NEEDS = {
    "benchmarks.suite.build": ("setuptools", "pybind11", "cmake", "ninja", "nvcc", "c++"),
    "benchmarks.suite.gpu_tests": ("pytest",),
    "benchmarks.bench_loader": ("scikit-learn",),
    "benchmarks.bench_train_step": ("safetensors",),
    "benchmarks.profile_step": ("safetensors",),
    "benchmarks.bench_sweep": ("safetensors", "scikit-learn"),
    "benchmarks.suite.train": ("safetensors", "tyro"),
    "benchmarks.counters": ("ncu",),
    "benchmarks.sanitizer": ("compute-sanitizer",),
}
# Pieces that no part needs, with what is left out without them.
OPTIONAL = {
    "dali": "no DALI rows in the loader part",
    "flash-attn-4": "no row of flash-attention 4 in the attention part, nor of FlexAttention's FLASH backend",
    "apex": "no apex row for the optimizer (PyPI's apex is another project)",
    "optuna": "sampled sweeps cannot run; no part needs them",
    "hypothesis": "its tests are left out",
    "matplotlib": "no curves.png; metrics.jsonl and summary.csv are kept",
    "scipy": "no Flowers-102",
}


def is_present(piece: str) -> bool:
    """Whether a piece of PIECES is on this machine, in any version."""
    name = PIECES[piece]
    if name.startswith("("):
        return find_program(name.strip("()")) is not None
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the package around a submodule is missing
        return False


def find_program(name: str) -> str | None:
    """Return the path of a program beside this Python, on PATH or in the CUDA toolkit; None if it is nowhere."""
    places = (str(Path(sys.executable).parent), None, CUDA_PROGRAMS)
    return next((found for place in places if (found := shutil.which(name, path=place))), None)


def program(name: str) -> str:
    """Return the path of a program.

    Raises:
        RuntimeError: the program is missing.
    """
    if found := find_program(name):
        return found
    raise RuntimeError(f"{name} is not on PATH, nor in {CUDA_PROGRAMS}")


def lack(piece: str) -> str:
    """Describe a missing piece: its name, with the versions that pyproject.toml asks for; "" if it is present."""
    if not is_present(piece):
        return piece
    bounds = requirements().get(piece)
    if bounds is None or PIECES[piece].startswith("("):
        return ""
    try:
        version = metadata.version(piece)
    except metadata.PackageNotFoundError:  # a source tree on the path
        return ""
    from packaging.version import Version

    final = Version(version).base_version  # an image's 2.11.0a0+1234 counts as 2.11.0
    return "" if bounds.contains(final) else f"{piece}{bounds} (here: {version})"


def missing(command: Command, has_data: bool, check_only: bool = False) -> list[str]:
    """Return the missing pieces that a command needs."""
    if not is_present("packaging"):
        return ["packaging"]
    own = () if check_only else NEEDS.get(command.module, ())
    needs = [*LIBRARY, *own, *(piece for piece in command.needs if piece != "data")]
    absent = [text for piece in needs if (text := lack(piece))]
    return absent + (["--data ROOT with cifar-100-python"] if "data" in command.needs and not has_data else [])


def report(parts: dict[str, list[Command]], missing: Callable[[Command], list[str]]) -> list[str]:
    """Return lines that say what is missing and which parts are skipped for that.

    Args:
        missing: command -> the missing pieces that it needs.
    """
    stopped: dict[str, list[str]] = {}
    for name, commands in parts.items():
        for command in commands:
            for piece in missing(command):
                if piece not in OPTIONAL and name not in stopped.setdefault(piece, []):
                    stopped[piece].append(name)
    lines = [f"missing: {piece}; skipped for it: {', '.join(names)}" for piece, names in stopped.items()]
    lines += [f"missing: {piece}; {effect}" for piece, effect in OPTIONAL.items() if not is_present(piece)]
    return lines


@functools.cache
def requirements() -> dict[str, SpecifierSet]:
    """Read from pyproject.toml the versions that building and running need (tomllib is newer than Python 3.10)."""
    from packaging.requirements import Requirement

    text = (ROOT / "pyproject.toml").read_text()
    blocks = re.findall(r"^(?:requires|dependencies) = \[(.*?)\]$", text, flags=re.MULTILINE | re.DOTALL)
    found = [Requirement(name) for block in blocks for name in re.findall(r'"([^"]+)"', block)]
    return {requirement.name: requirement.specifier for requirement in found}


def wheel_files(paths: Iterable[Path]) -> list[Path]:
    """Return the wheels at the given paths: a wheel itself, or all wheels of a folder.

    Raises:
        ValueError: a path holds no wheel.
    """
    found = []
    for path in paths:
        wheels = sorted(path.glob("*.whl")) if path.is_dir() else [path]
        if not wheels or not all(wheel.is_file() and wheel.suffix == ".whl" for wheel in wheels):
            raise ValueError(f"--wheels: {path} is neither a wheel nor a folder of wheels")
        found += wheels
    return found


def install_wheels(wheels: Sequence[Path], site: Path) -> None:
    """Install wheels into a folder of the suite, and leave the environment as it is.

    The folder comes first on the path of the suite's processes.

    Raises:
        RuntimeError: pip fails.
    """
    listed = site / "wheels.txt"
    names = "\n".join(wheel.name for wheel in wheels)
    if not wheels or (listed.is_file() and listed.read_text() == names):
        return
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--upgrade", "--no-compile"]
    done = subprocess.run([*pip, "--target", str(site), *map(str, wheels)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"--wheels: pip could not install them:\n{done.stderr.strip()}")
    listed.write_text(names)
