"""What every kernel takes of a multiprocessor: its registers, and the local memory of what does not fit in them.

The machine code of the library here says it, and is not compiled again: in a clean clone for 8.0, 9.0a, 10.0 and 12.0.
For 8.6, which 8.0's code serves unless the build is asked for it, the kernels are compiled here; 8.9's machine code is
the same, byte for byte, which two small sources show.
"""

import hashlib
import os
import re
import shutil
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import lgfast
from benchmarks.model import objects
from benchmarks.model.elf import sections
from benchmarks.suite import build
from lgfast import _extension
from lgfast.ops.short_attention import HEAD_DIMS
from tests.emulation.attention_case import INSTANCES

ROOT = Path(lgfast.__file__).resolve().parents[1]
BUILT = re.findall(r"(\w+)-real", _extension.build_info().get("cuda_archs", ""))
COMPILED = ("86", "89")

# How many kernels each operation has.
ROW_CAPACITIES = [64, 128, 192, 208]  # keys of the longest row that a forward kernel takes; one more takes the rest
KERNELS = {
    "short_attention_fwd": 2 * len(HEAD_DIMS) * (len(ROW_CAPACITIES) + 1),  # bf16 and fp16
    "short_attention_fwd_wgmma": 2,  # for D = 64; of sm_90a alone, elsewhere empty
    "short_attention_bwd_resident": 2 * len(HEAD_DIMS),
    "short_attention_bwd_wgmma": 2,  # likewise
    "short_attention_bwd_streamed": 2 * len(HEAD_DIMS),
    "add_layer_norm": 3 * 4,  # float32, bf16, fp16
    "bias_gelu": 3 * 2,
    "column_sum": 2 * 3,  # of both
    "feature_mse": 4 * 3 + 2,  # also float64; by vectors, by values, scaled; the sum of float and of double
    "flat_adamw": 3 * 2 + 1,
    "augment": 3 * 4,  # a whole image in shared memory, or parts of it in a workspace; of 224 pixels, or of any size
    "augment_plan": 1,
    "augment_order": 1,
}

# Bytes of local memory a thread, by operation and architecture ("" is any), with what they cost. All others have none.
KNOWN_LOCAL = {
    # Made for sm_90a. On 10.0 a warp reads 328 bytes again a tile; on 12.0 the plan takes the streamed kernel always.
    ("short_attention_bwd_resident", "100"): 56,
    ("short_attention_bwd_resident", "120"): 40,
    # 768 threads leave 80 registers: what passes over the planes share lies in local memory, as do the registers that
    # the functions for moved pixels take over. Their loops over pixels read none of it. Kernels of 224 pixels have at
    # most 256, those of any size the rest.
    ("augment", ""): 440,
    # Twelve blocks at once leave 80 registers. Outside the loops a thread keeps a sum in local memory; where both maps
    # are resized, three addresses too, read once a student row.
    ("feature_mse", ""): 16,
    ("feature_mse", "100"): 40,
    ("augment_plan", ""): 40,  # an array with a computed index, once an image
}
MOST_REGISTERS = {"short_attention": 255, "augment": 80}  # of all others 128: two blocks of 256 threads at least


class Usage(NamedTuple):
    """What one kernel takes on one architecture: registers and bytes of local memory a thread, bytes of shared memory
    a block beside the planned."""

    op: str
    arch: str
    registers: int
    local: int
    shared: int


def usages(code: Path) -> list[Usage]:
    """Return the usage of every kernel in a library or a fat binary."""
    text = objects.run(objects.tool("cuobjdump"), "--dump-resource-usage", code)
    found = []
    for arch, listed in re.findall(r"^arch = sm_(\w+)$(.*?)(?=^arch|\Z)", text, re.MULTILINE | re.DOTALL):
        for name, *numbers in re.findall(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", listed):
            registers, stack, shared, local = map(int, numbers)
            kernel = re.search(r"lgfast\d+([a-z_]+)_kernel", name)[1]
            op = max((op for op in KERNELS if kernel.startswith(op)), key=len, default=kernel)
            found.append(Usage(op, arch, registers, stack + local, shared))
    return found


def assert_fits(usage: Usage) -> None:
    limits = [limit for op, limit in MOST_REGISTERS.items() if usage.op.startswith(op)]
    assert usage.registers <= min([*limits, 255 if limits else 128]), usage
    local = max(KNOWN_LOCAL.get((usage.op, arch), 0) for arch in (usage.arch, ""))
    assert usage.local <= local, f"registers do not suffice: {usage}"
    reserved = 1024 * (int(usage.arch.rstrip("af")) >= 90)  # by the system
    assert usage.shared <= reserved, f"shared memory beside the planned: {usage}"


@cache
def in_library() -> list[Usage]:
    return usages(ROOT / "lgfast" / "_cuda.so")


@pytest.mark.parametrize("arch", sorted({"80", "90a", "100", "120", *BUILT}))
def test_kernels_of_the_library_fit_in_registers(arch):
    if arch not in BUILT:
        pytest.skip(f"lgfast._cuda is not built for sm_{arch}")
    found = [usage for usage in in_library() if usage.arch == arch]
    attention = arch != "75"
    assert Counter(usage.op for usage in found) == {
        op: number for op, number in KERNELS.items() if attention or not op.startswith("short_attention")
    }
    for usage in found:
        assert_fits(usage)


# bf16 stands for fp16, whose kernels are the same but for the type of what is multiplied.
SOURCES = [source for source in INSTANCES if "bf16" in source]
SOURCES += [f"csrc/{op}/{op}.cu" for op in ("add_layer_norm", "bias_gelu", "feature_mse", "flat_adamw")]
SOURCES += ["csrc/augment/instances/augment_bf16.cu"]
FOR_BOTH = ("bias_gelu", "fwd_bf16_d32")  # are compiled for 8.9 too, and have the same code there


def code(fatbin: Path, arch: str, folder: Path) -> dict[str, bytes]:
    """Return every kernel's machine code for an architecture."""
    found = [sections(cubin.read_bytes()) for cubin in objects.extract(fatbin, arch, folder)]
    return {name: section.data for some in found for name, section in some.items() if name.startswith(".text.")}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.skipif(set(COMPILED) <= set(BUILT), reason="the library has them")
def test_kernels_fit_in_registers_where_8_0_s_code_is_compiled_for_others(tmp_path):
    """What is compiled stays in build/ until a source, this file or the compiler changes."""
    how = objects.run("nvcc", "--version").encode() + Path(__file__).read_bytes()
    how = hashlib.blake2b(how, digest_size=4).hexdigest()
    kept = ROOT / "build" / "resources" / f"{build.digest(('csrc',), build.SUFFIXES)}-{how}"
    kept.mkdir(parents=True, exist_ok=True)

    def compiled(source: str) -> Path:
        target, fresh = kept / f"{Path(source).stem}.fatbin", kept / f"{Path(source).stem}.{os.getpid()}"
        options = ["--fmad=false"] if "augment" in source else []
        archs = COMPILED if target.stem in FOR_BOTH else COMPILED[:1]
        made = f"-gencode=arch=compute_80,code=[{','.join(f'sm_{arch}' for arch in archs)}]"
        command = ["nvcc", "-std=c++17", "-O3", *options, f"-I{ROOT / 'csrc'}", "-fatbin", made, ROOT / source]
        if not target.exists():
            objects.run(*command, "-o", fresh)
            fresh.replace(target)
        return target

    with ThreadPoolExecutor(2) as pool:
        fatbins = list(pool.map(compiled, SOURCES))
    for fatbin in fatbins:
        if fatbin.stem in FOR_BOTH:
            assert code(fatbin, "86", tmp_path / "86") == code(fatbin, "89", tmp_path / "89") != {}
    found = [usage for fatbin in fatbins for usage in usages(fatbin) if usage.arch == "86"]
    both_types = sum(number for op, number in KERNELS.items() if op.startswith("short_attention"))
    others = sum(KERNELS[op] for op in ("add_layer_norm", "bias_gelu", "column_sum", "feature_mse", "flat_adamw"))
    number = both_types // 2 + others + KERNELS["augment"] // 3
    assert len(found) == number
    for usage in found:
        assert_fits(usage)


@pytest.mark.parametrize(
    ("usage", "complaint"),
    [
        (Usage("bias_gelu", "80", 129, 0, 0), "129"),
        (Usage("bias_gelu", "80", 40, 8, 0), "registers do not suffice"),
        (Usage("short_attention_fwd", "100", 255, 8, 0), "registers do not suffice"),
        (Usage("short_attention_bwd_resident", "100", 255, 64, 0), "registers do not suffice"),
        (Usage("augment", "90a", 80, 448, 1024), "registers do not suffice"),
        (Usage("augment", "90a", 81, 256, 1024), "81"),
        (Usage("feature_mse", "90a", 40, 0, 1040), "shared memory beside the planned"),
        (Usage("feature_mse", "80", 40, 0, 16), "shared memory beside the planned"),
    ],
)
def test_what_does_not_fit_is_found(usage, complaint):
    with pytest.raises(AssertionError, match=complaint):
        assert_fits(usage)


def ptx_of_pixels(folder: Path) -> str:
    """Return the library's PTX of augment, or that of one instance, compiled with the build's options."""
    everything = objects.run(objects.tool("cuobjdump"), "--dump-ptx", ROOT / "lgfast" / "_cuda.so") if BUILT else ""
    of_augment = [ptx for ptx in everything.split("Fatbin ptx code:") if "augment_kernel" in ptx]
    if of_augment:
        return "".join(of_augment)
    if shutil.which("nvcc") is None:
        pytest.skip("lgfast._cuda holds no PTX, and nvcc is not there")
    property_of_sources = r'augment/augment\.cu [^)]*augment_float32\.cu [^)]*PROPERTIES COMPILE_OPTIONS "(.*)"\)'
    options = re.search(property_of_sources, (ROOT / "CMakeLists.txt").read_text())[1].split(";")
    source, ptx = ROOT / "csrc" / "augment" / "instances" / "augment_float32.cu", folder / "augment.ptx"
    command = ["nvcc", "-std=c++17", "-O3", *options, f"-I{ROOT / 'csrc'}", "-arch=compute_90", "-ptx", str(source)]
    subprocess.run([*command, "-o", str(ptx)], check=True, timeout=500)
    return ptx.read_text()


def test_pixel_arithmetic_is_neither_contracted_nor_approximated(tmp_path):
    """The GPU's bytes are the CPU's and Pillow's only if a * b + c is rounded twice, also where the driver compiles."""
    estimate = set()  # what the function of estimates that know their error has
    found = set()  # what all others have
    function = ""
    for line in ptx_of_pixels(tmp_path).splitlines():
        if re.match(r"(\.\w+ )*\.(entry|func)\b", line):
            function = line
        elif operation := re.match(r"\s*((?:fma|mul|add|sub|div|sqrt)\.[\w.]*f(?:32|64))\s", line):
            (estimate if "move_square" in function else found).add(operation[1])
    exact = {f"{name}.rn.{dtype}" for name in ("mul", "add", "sub", "div", "sqrt") for dtype in ("f32", "f64")}
    assert {"mul.rn.f32", "add.rn.f32", "div.rn.f32", "sqrt.rn.f32"} <= found
    asked_for = {"fma.rn.f64", "add.rm.f64"}  # by cos, exp and log, and by floor
    assert found <= exact | asked_for
    assert "fma.rn.f32" in estimate <= exact | asked_for | {"fma.rn.f32"}
