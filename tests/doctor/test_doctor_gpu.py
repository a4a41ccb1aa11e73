"""`lgfast.doctor --gpu`: what is native on a GPU that is not here, per operation, and what runs in its place."""

import pytest
import torch

from lgfast import _extension
from lgfast.doctor.__main__ import main
from lgfast.doctor.gpus import GPUS
from tests.stand_in_gpus import use_architectures

EVERY = {"feature_mse", "short_attention", "add_layer_norm", "bias_gelu", "flat_adamw", "augment", "augment_plan"}
needs_native = pytest.mark.skipif(not _extension.has_native(), reason="needs lgfast._C")


@pytest.fixture
def wide_build(monkeypatch):
    monkeypatch.setattr(_extension, "has_cuda_kernels", lambda: True)
    use_architectures(monkeypatch, "75-real 80-real 90a-real 100-real 120-real 120-virtual")


def native_and_rest(capsys, capability) -> tuple[set[str], str]:
    assert main(["--gpu", capability]) == 0
    said = capsys.readouterr().out
    line = next((line for line in said.splitlines() if f"native on {capability}: " in line), "")
    return set(line.partition(": ")[2].split(", ")), said


@needs_native
@pytest.mark.parametrize("capability", ["8.0", "8.6", "8.9", "9.0", "10.0", "10.3", "12.0", "12.1"])
def test_everything_is_native_from_8_0_on(wide_build, capsys, capability):
    native, said = native_and_rest(capsys, capability)
    assert native == EVERY
    assert "short_attention of PiT-Ti at 224" in said


def test_an_older_gpu_runs_all_but_attention(wide_build, capsys):
    native, said = native_and_rest(capsys, "7.5")
    assert native == EVERY - {"short_attention"}
    assert "in PyTorch on 7.5, slower: short_attention (the GPU must be of compute capability 8.0 or later)" in said


def test_what_would_serve_another_gpu_is_the_fix(monkeypatch, capsys):
    monkeypatch.setattr(_extension, "has_cuda_kernels", lambda: True)
    use_architectures(monkeypatch, "90a-real")
    native, said = native_and_rest(capsys, "8.9")
    assert native == {""}
    assert "fix: TORCH_CUDA_ARCH_LIST=8.9 pip install" in said


@needs_native
def test_the_kernels_of_attention_follow_the_shared_memory(wide_build, capsys):
    assert "PiT-Ti at 224, forward / backward: 730 tokens 256 keys / streamed;" in native_and_rest(capsys, "8.9")[1]
    assert "PiT-Ti at 224, forward / backward: 730 tokens all keys / streamed;" in native_and_rest(capsys, "9.0")[1]


def test_what_is_no_capability_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["--gpu", "ada"])
    error = capsys.readouterr().err
    assert "expected a compute capability such as 8.9, got 'ada'; known: 7.5 (T4, RTX 20)" in " ".join(error.split())


@pytest.mark.gpu
def test_the_gpu_at_hand_is_as_listed():
    gpu = torch.cuda.get_device_properties("cuda")
    assert GPUS[gpu.major, gpu.minor].block_smem == gpu.shared_memory_per_block_optin
