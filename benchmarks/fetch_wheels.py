"""Fetch the wheels that a PyTorch image for CUDA lacks, for a machine without network.

    python benchmarks/fetch_wheels.py [--python 3.12] [--out wheels]

All of them are pure Python, in the versions that pyproject.toml asks for. gpu_suite.py --wheels installs them beside
the image's packages.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WANTED = ("timm", "tyro", "docstring-parser", "typeguard", "typing-extensions")  # from the third on: what tyro needs
LARGEST_MIB = 64
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def requirements() -> list[str]:
    """Return the wanted packages, with the bounds that pyproject.toml has for them."""
    text = (ROOT / "pyproject.toml").read_text()
    bounds = dict(re.findall(r'^\s+"([\w-]+)([<>=][^"]*)?",', text, flags=re.MULTILINE))
    return [name + bounds.get(name, "") for name in WANTED]


def command(python: str, out: Path) -> list[str]:
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    return [*pip, "--implementation", "cp", "--python-version", python, *platforms, "--dest", str(out), *requirements()]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default="3.12", help="Python version of that machine; default 3.12")
    parser.add_argument("--out", type=Path, default=ROOT / "wheels", help="folder; default wheels/, which git ignores")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    for wheel in options.out.glob("*.whl"):  # two versions of one package cannot be installed together
        wheel.unlink()
    if code := subprocess.run(command(options.python, options.out)).returncode:
        print("error: pip could not fetch them (its reason stands above)", file=sys.stderr)
        return code
    wheels = sorted(options.out.glob("*.whl"))
    size = sum(wheel.stat().st_size for wheel in wheels) / 2**20
    print(*(wheel.name for wheel in wheels), f"{size:.1f} MiB in {options.out}", sep="\n")
    if size > LARGEST_MIB:
        print(f"error: {size:.0f} MiB, expected at most {LARGEST_MIB}", file=sys.stderr)
    return int(size > LARGEST_MIB)


if __name__ == "__main__":
    sys.exit(main())
