"""Builds lgfast in place for the GPU at hand; --check only says what is built.

    python -m benchmarks.suite.build [--check]

A second build compiles only what changed, so a build that met its time limit goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("lgfast", "csrc", "cmake", "benchmarks", "tests")
SUFFIXES = (".py", ".cu", ".cuh", ".cpp", ".h", ".inc", ".cmake", ".yaml")
CUDA_PROGRAMS = "/usr/local/cuda/bin"  # where a toolkit lies that is not on PATH


def arch_list(capability: tuple[int, int]) -> str:
    """Compile target of a GPU: Hopper's with its architecture-specific instructions, others plain."""
    return "9.0a" if capability == (9, 0) else f"{capability[0]}.{capability[1]}"


def build() -> None:
    import torch

    environment = os.environ | {"LGFAST_CUDA": "on"}
    environment.setdefault("TORCH_CUDA_ARCH_LIST", arch_list(torch.cuda.get_device_capability()))
    environment["PATH"] += f"{os.pathsep}{CUDA_PROGRAMS}"
    print(f"building for {environment['TORCH_CUDA_ARCH_LIST']}", flush=True)
    subprocess.run([sys.executable, "setup.py", "build_ext", "--inplace"], cwd=ROOT, env=environment, check=True)


def source_digest() -> str:
    """Of everything that decides what a command of the suite does."""
    total = hashlib.blake2b(digest_size=8)
    files = (path for folder in SOURCES for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES)
    for path in sorted(files):
        total.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return total.hexdigest()


def is_built(with_cuda: bool) -> bool:
    """Whether the libraries lie in the source tree, for this Python; a fresh copy of it has none."""
    package = ROOT / "lgfast"
    has_module = any((package / f"_C{suffix}").is_file() for suffix in EXTENSION_SUFFIXES)
    return has_module and (not with_cuda or (package / "_cuda.so").is_file())


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="build nothing")
    options = parser.parse_args(argv)
    if not options.check:
        build()
    from lgfast import _extension  # after the build, so that it loads what was built

    print(f"native: {_extension.has_native()}, CUDA kernels: {_extension.has_cuda_kernels()}")
    for key, value in _extension.build_info().items():
        print(f"{key}: {value}")
    return 0 if options.check or _extension.has_cuda_kernels() else 1


if __name__ == "__main__":
    sys.exit(main())
