"""A GPU that the CUDA kernels were not built for is named, with the fix, before anything fails somewhere else."""

import re
import shutil
import subprocess
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from benchmarks import harness
from lgfast import _extension
from lgfast.assembly.device import resolve_device

ROOT = Path(__file__).resolve().parents[1]
HOPPER = "90a-real 90-virtual"  # the default TORCH_CUDA_ARCH_LIST, 9.0a+PTX
UNSERVED = (
    "lgfast's CUDA kernels were built for 9.0a, 9.0, which a GPU of compute capability 8.0 cannot run; "
    "build again with TORCH_CUDA_ARCH_LIST=8.0"
)


def use_architectures(monkeypatch, cuda_archs):
    monkeypatch.setattr(_extension, "build_info", lambda: {"cuda_archs": cuda_archs})
    monkeypatch.setattr(_extension, "_cuda_architectures", _extension._architectures())


@pytest.fixture
def a100(monkeypatch):
    use_architectures(monkeypatch, HOPPER)
    monkeypatch.setattr(_extension, "has_cuda_kernels", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))


@pytest.mark.parametrize(
    ("cuda_archs", "capability", "is_served"),
    [
        (HOPPER, (9, 0), True),
        (HOPPER, (10, 0), True),  # from PTX
        (HOPPER, (12, 0), True),
        (HOPPER, (8, 0), False),
        (HOPPER, (8, 9), False),
        ("90a-real", (9, 0), True),
        ("90a-real", (10, 0), False),
        ("100a-real", (10, 3), False),
        ("100f-real", (10, 3), True),
        ("80-real", (8, 9), True),
        ("86-real", (8, 0), False),
        ("80-real", (9, 0), False),
        ("80-real 80-virtual", (9, 0), True),
    ],
)
def test_machine_code_and_ptx_serve_what_they_can_run_on(cuda_archs, capability, is_served, monkeypatch):
    use_architectures(monkeypatch, cuda_archs)
    reason = _extension.unserved_gpu_reason(capability)
    assert (reason is None) == is_served
    assert is_served or reason.endswith("TORCH_CUDA_ARCH_LIST={}.{}".format(*capability))


def test_training_refuses_a_gpu_without_kernels_before_it_starts(a100):
    with pytest.raises(ValueError, match=re.escape(f"device: {UNSERVED}, or set LGFAST_NATIVE=off")):
        resolve_device("cuda")


def test_benchmarks_refuse_a_gpu_without_kernels(a100):
    with pytest.raises(SystemExit, match=re.escape(UNSERVED)):
        harness.chosen_device(Namespace(device="cuda"))


PROGRAM = r"""
#include "common/device.cuh"
int main() { std::puts(lgfast::describe_launch_error(cudaErrorNoKernelImageForDevice)); }
"""


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_a_launch_without_code_for_the_gpu_names_the_fix(tmp_path):
    (tmp_path / "program.cu").write_text(PROGRAM)
    command = ["nvcc", "-std=c++17", f"-I{ROOT / 'csrc'}", "-arch=sm_90", str(tmp_path / "program.cu")]
    subprocess.run([*command, "-o", str(tmp_path / "program")], check=True, timeout=200)
    done = subprocess.run([tmp_path / "program"], capture_output=True, text=True, check=True, timeout=60)
    assert re.fullmatch(
        r"the CUDA kernels were not compiled for this GPU, of compute capability (\d+\.\d) \(no kernel image .*\); "
        r"build lgfast again with TORCH_CUDA_ARCH_LIST=\1, or set LGFAST_NATIVE=off",
        done.stdout.strip(),
    )
