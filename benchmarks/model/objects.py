"""Read the machine code of built objects, with programs of the CUDA toolkit."""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.model.elf import Section, pointers, sections
from benchmarks.model.sass import Instruction, functions

HELP = "pip's triton package carries it; or put the CUDA toolkit on PATH"


class MissingTool(RuntimeError):
    """A program of the CUDA toolkit is not on this machine."""


@functools.cache
def tool(name: str) -> str:
    """Return the path of cuobjdump or nvdisasm, on PATH or in pip's triton.

    Raises:
        MissingTool: neither has it.
    """
    triton = importlib.util.find_spec("triton")
    inside = [
        Path(place) / "backends" / "nvidia" / "bin" for place in (triton.submodule_search_locations if triton else ())
    ]
    for place in (None, *map(str, inside), "/usr/local/cuda/bin"):
        if found := shutil.which(name, path=place):
            return found
    raise MissingTool(f"{name} is not there: {HELP}")


def run(*command: object, folder: Path | None = None) -> str:
    return subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True, check=True).stdout


@dataclass(frozen=True)
class Kernel:
    """The machine code of one kernel for one architecture.

    Attributes:
        registers, stack_bytes: of a thread.
        constants: constant bank -> its contents, as the compiler filled it.
        parameter_bytes: where the kernel's parameters end in bank 0.
        initialised: initialised memory that the code reads.
        pointers: offset in bank 4 -> the offset in that memory whose address belongs there.
    """

    name: str
    instructions: list[Instruction]
    registers: int
    stack_bytes: int
    constants: dict[int, bytes]
    parameter_bytes: int = 0
    initialised: bytes = b""
    pointers: dict[int, int] = field(default_factory=dict)


def extract(library: Path, arch: str, folder: Path) -> list[Path]:
    """Extract the cubins of an architecture from a library or object into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    run(tool("cuobjdump"), "-xelf", f"sm_{arch}", library.resolve(), folder=folder)
    return sorted(folder.glob(f"*sm_{arch}.cubin"))


def symbols(cubin: Path) -> set[str]:
    """Return the mangled names of the kernels in a cubin."""
    return {name.decode() for name in re.findall(rb"\.text\.(\w+)", cubin.read_bytes())}


def read(cubin: Path, name: str) -> Kernel:
    """Read one kernel of a cubin."""
    lines = run(tool("cuobjdump"), "--dump-sass", "-fun", name, cubin).splitlines()
    usage = run(tool("cuobjdump"), "--dump-resource-usage", "-fun", name, cubin)
    numbers = re.search(rf"Function {re.escape(name)}:\s*\n?\s*REG:(\d+) STACK:(\d+)", usage)
    registers, stack = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    parts = sections(cubin.read_bytes())
    constants = {
        bank: parts[place].data
        for bank in range(1, 8)
        for place in (f".nv.constant{bank}", f".nv.constant{bank}.{name}")
        if place in parts
    }
    empty = Section(0, b"", 0)
    parameter_bytes = len(parts.get(f".nv.constant0.{name}", empty).data)
    initialised = parts.get(".nv.global.init", empty).data
    code = functions(lines)[name]
    places = pointers(parts, ".nv.constant4")
    return Kernel(name, code, registers, stack, constants, parameter_bytes, initialised, places)


def compile_object(source: Path, arch: str, folder: Path, includes: Path, options: list[str]) -> list[Path]:
    """Compile one CUDA source for one architecture, as the library is compiled; return its cubins.

    Raises:
        MissingTool: there is no nvcc.
    """
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        raise MissingTool("nvcc is not on PATH, nor in /usr/local/cuda/bin: other architectures need it")
    place = folder / source.stem
    if not place.exists():
        place.mkdir(parents=True)
        code = f"-gencode=arch=compute_{arch},code=sm_{arch}"
        target = place / f"{source.stem}.o"
        run(nvcc, "-std=c++17", "-O3", f"-I{includes}", *options, code, "-c", source, "-o", target)
        extract(target, arch, place)
    return sorted(place.glob("*.cubin"))
