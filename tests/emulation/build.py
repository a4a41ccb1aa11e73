"""Build emulated kernels with g++, AddressSanitizer and UBSan into build/emulation; compile only what changed."""

import fcntl
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
BUILD = ROOT / "build" / "emulation"
FLAGS = [
    *("-std=c++17", "-Og", "-g1", "-DLGFAST_EMULATION", f"-I{ROOT / 'csrc'}"),
    *(f"-I{HERE}", "-Wall", "-Wextra", "-Wno-unknown-pragmas"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
]


def build(name: str, sources: list[str]) -> Path:
    """Build the executable `name` from `sources` (relative to the repository) and the emulation; return its path."""
    BUILD.mkdir(parents=True, exist_ok=True)
    emulation = [
        f"tests/emulation/{name}.cpp" for name in ("device_emulation", "warpgroup_emulation", "phase_barriers")
    ]
    sources = [ROOT / source for source in [*sources, *emulation]]
    program = BUILD / name
    with open(BUILD / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes may ask at once
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(_compile, sources))
        if _is_older(program, objects):
            _run([compiler(), "-fsanitize=address,undefined", *map(str, objects), "-o", str(program)])
    return program


def compiler() -> str:
    path = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if path is None:
        raise RuntimeError("the emulated kernels need a C++17 compiler, got none; install g++ or clang++, or set CXX")
    return path


def _compile(source: Path) -> Path:
    target = BUILD / f"{source.stem}.o"
    dependencies = target.with_suffix(".d")
    flags = [*FLAGS, "-O2"] if source.name == "device_emulation.cpp" else FLAGS  # it runs most of the time
    if not dependencies.exists() or _is_older(target, _read_dependencies(dependencies)):
        _run([compiler(), *flags, "-MMD", "-MF", str(dependencies), "-x", "c++", "-c", str(source), "-o", str(target)])
    return target


def _read_dependencies(path: Path) -> list[Path]:
    return [Path(name) for name in path.read_text().replace("\\\n", " ").split(":", 1)[1].split()]


def _is_older(target: Path, inputs: list[Path]) -> bool:
    if not target.exists():
        return True
    made = target.stat().st_mtime
    return any(not path.exists() or path.stat().st_mtime > made for path in inputs)


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{result.stdout}{result.stderr}")
