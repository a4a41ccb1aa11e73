"""What must be true of a wheel that is given away: `python -m tests.wheel WHEEL`, the last step of `make wheel`."""

from __future__ import annotations

import argparse
import io
import re
import sys
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection

from lgfast.version import __version__

ROOT = Path(__file__).resolve().parents[1]
LARGEST_MB = 60
# Who provides what the libraries need: torch, which is loaded before them, or any Linux of a manylinux tag (PEP 600).
TORCH = {"libtorch_cpu.so", "libc10.so"}
SYSTEM = {"libc.so.6", "libm.so.6", "libdl.so.2", "librt.so.1", "libpthread.so.0", "ld-linux-x86-64.so.2"}
SYSTEM |= {"libgcc_s.so.1", "libstdc++.so.6"}


class Needs(NamedTuple):
    """Of a shared library: the libraries it needs, folders where it looks for them, and symbol versions, by library."""

    libraries: set[str]
    folders: set[str]
    versions: dict[str, set[str]]

    @property
    def glibc(self) -> tuple[int, ...]:
        """The newest version of glibc of which it uses a symbol."""
        texts = [text for names in self.versions.values() for text in names if text.startswith("GLIBC_2")]
        return max((tuple(map(int, text[6:].split("."))) for text in texts), default=(2, 0))


def needs(library: bytes) -> Needs:
    """From the dynamic section of an ELF file."""
    found = Needs(set(), set(), {})
    for section in ELFFile(io.BytesIO(library)).iter_sections():
        if isinstance(section, DynamicSection):
            tags = list(section.iter_tags())
            found.libraries.update(tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED")
            found.folders.update(tag.runpath for tag in tags if tag.entry.d_tag == "DT_RUNPATH")
            found.folders.update(tag.rpath for tag in tags if tag.entry.d_tag == "DT_RPATH")
        if isinstance(section, GNUVerNeedSection):
            for of, versions in section.iter_versions():
                found.versions.setdefault(of.name, set()).update(version.name for version in versions)
    return found


def package_files() -> set[str]:
    """What a wheel holds of the checkout, the libraries apart."""
    suffixes = {".py", ".yaml", ".html", ".inc", ".typed"}
    files = {path for path in (ROOT / "lgfast").rglob("*") if path.is_file() and path.suffix in suffixes}
    return {path.relative_to(ROOT).as_posix() for path in files}


def content_problems(content: set[str], python: str, cuda: bool) -> Iterable[str]:
    """Of the names in a wheel, its metadata apart; python: its tag, cp311."""
    libraries = {f"lgfast/_C.cpython-{python[2:]}-x86_64-linux-gnu.so"} | ({"lgfast/_cuda.so"} if cuda else set())
    for entry in sorted(content ^ (package_files() | libraries)):
        yield f"{entry}: {'does not belong in it' if entry in content else 'is missing'}"


def library_problems(name: str, library: bytes, tag: str) -> Iterable[str]:
    found = needs(library)
    if others := found.libraries - TORCH - SYSTEM:
        yield f"{name}: neither torch nor the system provides {', '.join(sorted(others))}"
    if found.folders:
        yield f"{name}: looks for libraries in {', '.join(sorted(found.folders))}, folders of the machine that built it"
    oldest = [tuple(map(int, pair)) for pair in re.findall(r"manylinux_(\d+)_(\d+)_x86_64", tag)]
    if not oldest or min(oldest) < found.glibc:
        yield f"{name}: needs glibc {'.'.join(map(str, found.glibc))}, the wheel is tagged {tag}"


def metadata_problems(archive: zipfile.ZipFile, folder: str) -> Iterable[str]:
    metadata, entry = (archive.read(f"{folder}/{name}").decode() for name in ("METADATA", "entry_points.txt"))
    for line in ("Name: lgfast", f"Version: {__version__}", "Requires-Python: >=3.10", "Requires-Dist: torch>=2.11"):
        if line not in metadata.splitlines():
            yield f"METADATA: no line {line!r}"
    if "lgfast = lgfast.__main__:main" not in entry.splitlines():
        yield "entry_points.txt: no command lgfast"


def problems(wheel: Path, cuda: bool = True, gpus: str = "") -> list[str]:
    """What is wrong with a wheel; nothing where all is well.

    cuda: whether it is to hold CUDA kernels; gpus: for which, as in TORCH_CUDA_ARCH_LIST, where that matters.
    """
    name, version, python, _, tag = wheel.stem.split("-")
    megabytes = wheel.stat().st_size / 1e6
    found = [f"{megabytes:.0f} MB, expected less than {LARGEST_MB}"] if megabytes >= LARGEST_MB else []
    with zipfile.ZipFile(wheel) as archive:
        names = {entry for entry in archive.namelist() if not entry.endswith("/")}
        folder = f"{name}-{version}.dist-info"
        found += content_problems({entry for entry in names if not entry.startswith(f"{folder}/")}, python, cuda)
        found += metadata_problems(archive, folder)
        libraries = {entry: archive.read(entry) for entry in sorted(names) if entry.endswith(".so")}
    for entry, library in libraries.items():
        found += library_problems(entry, library, tag)
    built = re.sub(r"(\d+)\.(\d)([af]?)(\+PTX)?", _as_cmake, gpus)
    if built.encode() not in libraries.get("lgfast/_cuda.so", b""):
        found.append(f"lgfast/_cuda.so: not built for {gpus}")
    return found


def _as_cmake(entry: re.Match[str]) -> str:
    """12.0+PTX -> 120-real 120-virtual."""
    number = entry[1] + entry[2]
    return f"{number}{entry[3]}-real" + f" {number}-virtual" * bool(entry[4])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheels", nargs="+", type=Path)
    parser.add_argument("--gpus", default="", help="what TORCH_CUDA_ARCH_LIST was")
    options = parser.parse_args(argv)
    wrong = 0
    for wheel in options.wheels:
        found = problems(wheel, gpus=options.gpus)
        wrong += len(found)
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB", *found, sep="\n  ")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
