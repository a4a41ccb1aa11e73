"""Build lgfast in place for the GPU at hand; with --check only say what is built.

    python -m benchmarks.suite.build [--check] [--stamp FILE]

A second build compiles only what changed, so a build that met its time limit goes on. With --stamp nothing is compiled
if the libraries are in place and FILE says that they were built from these very sources, here or elsewhere.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("lgfast", "csrc", "cmake", "benchmarks", "tests")
NATIVE = ("csrc", "cmake", "setup.py", "CMakeLists.txt", "lgfast/ops/schemas.inc")  # sources of the libraries
SUFFIXES = (".py", ".cu", ".cuh", ".cpp", ".h", ".inc", ".cmake", ".yaml")
CUDA_PROGRAMS = "/usr/local/cuda/bin"  # of a toolkit that is not on PATH


def arch_list(capability: tuple[int, int]) -> str:
    """Return the compile target of a GPU: Hopper's with its architecture-specific instructions, others plain."""
    return "9.0a" if capability == (9, 0) else f"{capability[0]}.{capability[1]}"


def build() -> None:
    import torch

    environment = os.environ | {"LGFAST_CUDA": "on"}
    environment.setdefault("TORCH_CUDA_ARCH_LIST", arch_list(torch.cuda.get_device_capability()))
    environment["PATH"] += f"{os.pathsep}{CUDA_PROGRAMS}"
    print(f"building for {environment['TORCH_CUDA_ARCH_LIST']}", flush=True)
    subprocess.run([sys.executable, "setup.py", "build_ext", "--inplace"], cwd=ROOT, env=environment, check=True)


def source_digest() -> str:
    """Return a digest of everything that decides what a command of the suite does."""
    return digest(SOURCES, SUFFIXES)


def native_digest() -> str:
    """Return a digest of everything that decides what the libraries are."""
    return digest(NATIVE, (*SUFFIXES, ".txt"))


def digest(places: Iterable[str], suffixes: tuple[str, ...]) -> str:
    """Return the digest of files, and of files in folders that have one of the suffixes."""
    total = hashlib.blake2b(digest_size=8)
    roots = [ROOT / place for place in places]
    files = {path for root in roots for path in (root, *root.rglob("*")) if path.is_file() and path.suffix in suffixes}
    for path in sorted(files):
        total.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return total.hexdigest()


def is_built(with_cuda: bool) -> bool:
    """Whether the source tree holds the libraries for this Python; a fresh copy of it holds none."""
    package = ROOT / "lgfast"
    has_module = any((package / f"_C{suffix}").is_file() for suffix in EXTENSION_SUFFIXES)
    return has_module and (not with_cuda or (package / "_cuda.so").is_file())


def is_current(stamp: Path | None) -> bool:
    """Whether the libraries are those of the present sources, by the stamp."""
    is_stamped = stamp is not None and stamp.is_file() and stamp.read_text() == native_digest()
    return is_stamped and is_built(with_cuda=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="build nothing")
    parser.add_argument("--stamp", type=Path, help="file that says from which sources the libraries were built")
    options = parser.parse_args(argv)
    if not options.check and not is_current(options.stamp):
        build()
        if options.stamp:
            options.stamp.write_text(native_digest())
    from lgfast import _extension  # after the build, so that it loads what was built

    print(f"native: {_extension.has_native()}, CUDA kernels: {_extension.has_cuda_kernels()}")
    for key, value in _extension.build_info().items():
        print(f"{key}: {value}")
    return 0 if options.check or _extension.has_cuda_kernels() else 1


if __name__ == "__main__":
    sys.exit(main())
