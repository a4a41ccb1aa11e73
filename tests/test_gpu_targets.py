"""A GPU that the CUDA kernels were not built for is named, with the fix, and PyTorch takes the kernels' place."""

import re
import shutil
import subprocess
import warnings
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from benchmarks import harness
from lgfast import _extension
from lgfast.assembly.device import resolve_device
from tests.stand_in_gpus import use_architectures, use_gpus

ROOT = Path(__file__).resolve().parents[1]
HOPPER = "90a-real 90-virtual"  # TORCH_CUDA_ARCH_LIST=9.0a+PTX
UNSERVED = (
    "lgfast's CUDA kernels were built for 9.0a, PTX of 9.0, which a GPU of compute capability 8.0 cannot run; "
    "build again with TORCH_CUDA_ARCH_LIST=8.0"
)


@pytest.fixture
def a100(monkeypatch):
    use_architectures(monkeypatch, HOPPER)
    monkeypatch.setattr(_extension, "has_cuda_kernels", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    use_gpus(monkeypatch, [(8, 0)])


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


def test_training_goes_on_without_kernels_and_warns_once(a100):
    with pytest.warns(UserWarning, match=re.escape(f"all its operations in PyTorch on cuda, slower: {UNSERVED}")):
        assert resolve_device("cuda") == torch.device("cuda")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resolve_device("cuda")


@pytest.fixture
def python_kernels():
    """Says which operations Python has a kernel for on CUDA; undoes what a test registers."""

    def names():
        tables = {name: torch._C._dispatch_dump(f"lgfast::{name}") for name in op_names()}
        return {name for name, table in tables.items() if re.search(r"^CUDA: .*\.py:", table, re.MULTILINE)}

    yield names
    _extension._fallback_library._destroy()
    _extension._fallback_library = torch.library.Library("lgfast", "IMPL")


def op_names():
    return _extension.cuda_op_names()


@pytest.mark.skipif(not _extension.has_cuda_kernels(), reason="needs lgfast._cuda")
@pytest.mark.parametrize(
    ("cuda_archs", "gpus", "replaced"),
    [
        (HOPPER, [(9, 0)], ()),
        (HOPPER, [(8, 0)], ("",)),  # all
        (HOPPER, [(9, 0), (8, 0)], ("",)),
        ("75-real 90a-real", [(7, 5)], ("short_attention",)),
        ("75-real 75-virtual", [(8, 0)], ("short_attention",)),  # PTX of 7.5 has all but attention
    ],
)
def test_pytorch_takes_the_place_of_kernels_that_a_gpu_cannot_run(
    cuda_archs, gpus, replaced, monkeypatch, python_kernels
):
    use_architectures(monkeypatch, cuda_archs)
    use_gpus(monkeypatch, gpus)
    before = python_kernels()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _extension._use_references_on_unserved_gpus()
    assert python_kernels() == before | {name for name in op_names() if name.startswith(replaced)}
    assert bool(caught) == bool(replaced)


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
    done = subprocess.run([tmp_path / "program"], capture_output=True, text=True, check=True, timeout=300)
    assert re.fullmatch(
        r"the CUDA kernels were not compiled for this GPU, of compute capability (\d+\.\d) \(no kernel image .*\); "
        r"build lgfast again with TORCH_CUDA_ARCH_LIST=\1, or set LGFAST_NATIVE=off",
        done.stdout.strip(),
    )
