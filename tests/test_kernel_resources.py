"""What the compiler says of the kernels: no spilled registers, no local memory."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import lgfast
from lgfast.ops.short_attention import HEAD_DIMS

ROOT = Path(lgfast.__file__).resolve().parents[1]
INSTANCES = sorted((ROOT / "csrc" / "short_attention" / "instances").glob("*.cu"))
ROW_CAPACITIES = [64, 128, 192, 208]  # keys of the longest row that a forward kernel takes; one more takes the rest
ARCHS = ("80", "90a", "100")


def resource_report(source: Path, archs: Iterable[str] = ARCHS, options: Iterable[str] = ()) -> list[dict]:
    """One entry a kernel and architecture, from `ptxas -v`."""
    targets = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in archs]
    command = [
        "nvcc",
        "-std=c++17",
        "-O3",
        *options,
        f"-I{ROOT / 'csrc'}",
        "-Xptxas",
        "-v",
        *targets,
        "-c",
        str(source),
    ]
    run = subprocess.run([*command, "-o", os.devnull], capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stderr
    pattern = re.compile(
        r"Compiling entry function '(?P<kernel>\w+)' for '(?P<arch>\w+)'.*?(?P<stack>\d+) bytes stack frame, "
        r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers"
        r"(?P<rest>[^\n]*)",
        flags=re.DOTALL,
    )
    return [match.groupdict() for match in pattern.finditer(run.stderr)]


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_kernels_fit_in_registers_on_every_architecture():
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reports = dict(zip((source.stem for source in INSTANCES), pool.map(resource_report, INSTANCES), strict=True))
    assert len(reports) == 2 * 2 * len(HEAD_DIMS)  # forward and backward, bf16 and fp16
    for name, report in reports.items():
        kernels = len(ROW_CAPACITIES) + 1 if name.startswith("fwd") else 2  # backward: resident and streamed
        assert len(report) == kernels * len(ARCHS), name
        assert_stays_in_registers(name, report)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize(
    ("op", "num_kernels"),
    [
        ("add_layer_norm", 3 * (4 + 1)),  # float32, bf16, fp16; with the column sum
        ("bias_gelu", 3 * (2 + 1)),
        ("feature_mse", 4 * 4 + 2),  # also float64; by vectors twice, by values, scaled; the sum of float and of double
        ("flat_adamw", 3 * 2 + 1),
    ],
)
def test_other_kernels_fit_in_registers_on_every_architecture(op, num_kernels):
    report = resource_report(ROOT / "csrc" / op / f"{op}.cu")
    assert len(report) == num_kernels * len(ARCHS)
    assert_stays_in_registers(op, report)
    for entry in report:  # two blocks of 256 threads a multiprocessor at least
        assert int(entry["registers"]) <= 128, entry


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_augment_spills_no_more_than_is_known_on_any_architecture():
    """768 threads leave 80 registers: what a pixel's loops share lies in local memory. 23,000 of the 1.15 million
    instructions of warps of a rotated and sheared image, its plane's own included, read or write memory."""
    source = ROOT / "csrc" / "augment" / "instances" / "augment_bf16.cu"
    archs = ("80", "86", "89", "90a", "100", "120")
    report = resource_report(source, archs, ["--fmad=false"])
    assert len(report) == 2 * len(archs)  # an image in shared memory, or in a workspace
    for entry in report:
        assert int(entry["registers"]) <= 80, entry
        assert int(entry["stack"]) <= 168 and int(entry["stores"]) <= 224 and int(entry["loads"]) <= 368, entry


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_pixel_arithmetic_is_neither_contracted_nor_approximated(tmp_path):
    """The GPU's bytes are the CPU's and Pillow's only if a * b + c is rounded twice, also where the driver compiles."""
    property_of_sources = r'augment/augment\.cu [^)]*augment_float32\.cu [^)]*PROPERTIES COMPILE_OPTIONS "(.*)"\)'
    options = re.search(property_of_sources, (ROOT / "CMakeLists.txt").read_text())[1].split(";")
    source, ptx = ROOT / "csrc" / "augment" / "instances" / "augment_float32.cu", tmp_path / "augment.ptx"
    command = ["nvcc", "-std=c++17", "-O3", *options, f"-I{ROOT / 'csrc'}", "-arch=compute_90", "-ptx", str(source)]
    subprocess.run([*command, "-o", str(ptx)], check=True, timeout=500)
    found = set(re.findall(r"^\s+((?:fma|mul|add|sub|div|sqrt)\.[\w.]*f(?:32|64))\s", ptx.read_text(), re.MULTILINE))
    exact = {f"{name}.rn.{dtype}" for name in ("mul", "add", "sub", "div", "sqrt") for dtype in ("f32", "f64")}
    assert {"mul.rn.f32", "add.rn.f32", "div.rn.f32", "sqrt.rn.f32"} <= found
    # of cos, exp and log, of floor, and of an estimate that knows its error: they ask for it
    assert found <= exact | {"fma.rn.f64", "add.rm.f64", "fma.rm.f32"}


# Bytes of stack frame, spill stores and spill loads: the kernels are made for sm_90a, and one does not fit on sm_100.
SPILLED = {("bwd_bf16_d64", "resident", "sm_100"): (56, 80, 328), ("bwd_fp16_d64", "resident", "sm_100"): (56, 80, 328)}


def assert_stays_in_registers(name: str, report: list[dict]) -> None:
    for entry in report:
        where = f"{name} {entry['kernel']} {entry['arch']}"
        variant = "resident" if "resident" in entry["kernel"] else ""
        stack, stores, loads = SPILLED.get((name, variant, entry["arch"]), (0, 0, 0))
        assert int(entry["stack"]) <= stack and int(entry["stores"]) <= stores, f"{where}: local memory {entry}"
        assert int(entry["loads"]) <= loads, f"{where}: local memory {entry}"
        assert int(entry["registers"]) <= 255, where
        assert "smem" not in entry["rest"], f"{where}: shared memory beside the planned: {entry['rest']}"
