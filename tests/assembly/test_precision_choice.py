"""`precision=auto`: what it means on which device, and that a run keeps it."""

import pytest
import torch

from lgfast import _extension
from lgfast.assembly.device import resolve_precision
from lgfast.assembly.run import train_run
from lgfast.assembly.run_folder import resume_config
from lgfast.assembly.teachers import teacher_config
from lgfast.config import Config, load_yaml, replace
from lgfast.runtime import auto_precision
from tests.runs import tiny_config


@pytest.fixture
def gpu(monkeypatch):
    """Pretend that torch sees a GPU, which computes in bfloat16 or not."""

    def present(has_bf16):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
        monkeypatch.setattr(_extension, "has_cuda_kernels", lambda: False)  # which ask what GPU it is

    return present


@pytest.fixture
def cpu(monkeypatch):
    """Pretend that the processor has the instructions for bfloat16, or not, and is of a maker, with AMX or without."""

    def present(has_bf16, vendor="AuthenticAMD", has_amx=False):
        monkeypatch.setattr(_extension, "cpu_level", lambda: "avx512_bf16" if has_bf16 else "x86-64-v4")
        monkeypatch.setattr(auto_precision, "cpu_vendor", lambda: vendor)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx)
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)

    return present


@pytest.mark.filterwarnings("ignore:lgfast runs all its operations in PyTorch on cuda")
@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_follows_the_gpu(gpu, cpu, has_bf16, expected):
    gpu(has_bf16), cpu(not has_bf16)
    assert resolve_precision(Config()).precision == expected


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_follows_the_processor(gpu, cpu, has_bf16, expected):
    gpu(not has_bf16), cpu(has_bf16)
    assert resolve_precision(replace(Config(), {"device": "cpu"})).precision == expected


@pytest.mark.parametrize(
    ("vendor", "has_amx", "expected"),
    [
        ("GenuineIntel", False, "fp32"),  # multiplies bfloat16 no faster than float32
        ("GenuineIntel", True, "bf16"),
        ("AuthenticAMD", False, "bf16"),
        ("", False, "bf16"),  # a system that does not tell
    ],
)
def test_auto_takes_bf16_where_the_processor_multiplies_it_faster(cpu, vendor, has_amx, expected):
    cpu(True, vendor, has_amx)
    assert resolve_precision(replace(Config(), {"device": "cpu"})).precision == expected


def test_amx_alone_does_not_bring_the_instructions_of_the_kernels(cpu):
    cpu(False, "GenuineIntel", has_amx=True)  # as when LGFAST_CPU_LEVEL holds them below
    assert resolve_precision(replace(Config(), {"device": "cpu"})).precision == "fp32"


@pytest.mark.parametrize(
    ("owner", "name", "value"), [(torch.backends.mkldnn, "is_available", False), (_extension, "cpu_level", "")]
)
def test_without_the_code_that_has_the_instructions_a_processor_computes_in_float32(
    cpu, monkeypatch, owner, name, value
):
    cpu(True)
    monkeypatch.setattr(owner, name, lambda: value)
    assert resolve_precision(replace(Config(), {"device": "cpu"})).precision == "fp32"


@pytest.mark.parametrize("asked", ["fp32", "bf16", "fp16-amp"])
def test_what_is_asked_for_stays(gpu, asked):
    gpu(True)
    assert resolve_precision(replace(Config(), {"precision": asked})).precision == asked


@pytest.mark.parametrize("asked", ["auto", "fp32"])
def test_a_teacher_is_trained_in_its_students_precision(gpu, asked):
    gpu(True)
    config = replace(Config(), {"teacher.recipe": "cifar100-resnet56", "precision": asked})
    assert teacher_config(config).precision == resolve_precision(config).precision


def test_a_run_keeps_what_auto_meant(tmp_path, gpu, cpu):
    cpu(False)
    config = tiny_config(tmp_path, **{"precision": "auto", "max_steps": 1, "guidance.weight": 0})
    train_run(config)
    assert load_yaml(f"{config.run_dir}/config.yaml").precision == "fp32"
    gpu(True)
    assert resolve_precision(resume_config(config.run_dir, {})).precision == "fp32"
