"""LGFAST_DISABLE: single CUDA kernels are switched off, and what steps in for them is what runs without them."""

import re
import subprocess
from pathlib import Path

import pytest

import lgfast
from lgfast import _extension
from lgfast._native import VARIANTS
from tests.torch_process import run as run_python

ROOT = Path(lgfast.__file__).resolve().parents[1]
needs_native = pytest.mark.skipif(not _extension.has_native(), reason="lgfast._C is not in use")
needs_cuda_kernels = pytest.mark.skipif(not _extension.has_cuda_kernels(), reason="lgfast._cuda is not built")


def run(script: str, disabled: str) -> subprocess.CompletedProcess:
    environment = {"LGFAST_DISABLE": disabled, "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    return run_python(script, cwd=ROOT, env=environment)


@needs_cuda_kernels
def test_a_kernel_that_is_switched_off_gives_its_place_to_pytorch():
    """This holds for the named operations, attention's packed form included, and for no other; the CPU keeps its
    kernels."""
    script = """
import re, types
import torch
import lgfast.ops
from lgfast.data.resident_images import native_device
from lgfast.ops.short_attention import unsupported_shape_reason
for schema in lgfast._extension._schemas():
    name = schema.partition("(")[0]
    table = torch._C._dispatch_dump(f"lgfast::{name}")
    kernels = dict(re.findall(r"^(CPU|CUDA): (.*)", table, re.MULTILINE))
    print(name, *(device for device, kernel in sorted(kernels.items()) if "_extension.py" in kernel))
print("reason:", unsupported_shape_reason(torch.device("cuda"), torch.bfloat16, 197, 197, 64))
print("views:", native_device(torch.device("cuda")))
"""
    done = run(script, "short_attention_bwd,bias_gelu,augment")
    assert done.returncode == 0, done.stderr
    *ops, reason, views = done.stdout.splitlines()
    changed = {line.split()[0]: line.split()[1:] for line in ops if " " in line}
    off = ("short_attention_bwd", "short_attention_qkvpacked_bwd", "bias_gelu_fwd", "bias_gelu_bwd", "augment")
    assert changed == {name: ["CUDA"] for name in off} and len(ops) > len(off)
    assert reason == "reason: LGFAST_DISABLE switches short_attention_bwd off"
    assert views == "views: cpu"


def test_a_name_that_no_kernel_has_is_refused():
    done = run("import lgfast.ops", "short_attention_bwd,atention")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ValueError: LGFAST_DISABLE: unknown kernel 'atention'; known: add_layer_norm, ")
    assert "short_attention_bwd_resident" in last


@needs_native
def test_the_streamed_backward_steps_in_for_the_resident_one(monkeypatch):
    from lgfast import _C

    assert _C.short_attention_plan(768, 197, 197, 64, 227 << 10)["bwd"]["resident"]
    monkeypatch.setenv("LGFAST_DISABLE", "augment,short_attention_bwd_resident")
    assert not _C.short_attention_plan(768, 197, 197, 64, 227 << 10)["bwd"]["resident"]
    monkeypatch.setenv("LGFAST_DISABLE", "short_attention_bwd")  # another name
    assert _C.short_attention_plan(768, 197, 197, 64, 227 << 10)["bwd"]["resident"]


@needs_native
def test_products_of_warps_step_in_for_those_of_warpgroups(monkeypatch):
    from lgfast import _C

    def forward(**options):
        return _C.short_attention_plan(768, 197, 197, 64, 227 << 10, **options)["fwd"]

    assert forward(has_wgmma=True)["wgmma"] and not forward()["wgmma"]
    monkeypatch.setenv("LGFAST_DISABLE", "short_attention_fwd_wgmma")
    assert forward(has_wgmma=True) == forward()


@needs_native
@pytest.mark.parametrize("has_bias", [False, True])
def test_the_resident_backward_steps_in_for_that_by_warpgroups(monkeypatch, has_bias):
    from lgfast import _C

    def backward(queries=197, keys=197, dim=64, **options):
        return _C.short_attention_plan(768, queries, keys, dim, 227 << 10, has_bias=has_bias, **options)["bwd"]

    assert backward(has_wgmma=True)["wgmma"] and not backward()["wgmma"]
    for sizes in ((192, 197, 64), (197, 209, 64), (197, 197, 48)):
        assert backward(*sizes, has_wgmma=True) == backward(*sizes)
    assert backward(has_wgmma=True)["smem_bytes"] <= 227 << 10
    monkeypatch.setenv("LGFAST_DISABLE", "short_attention_bwd_wgmma")
    assert backward(has_wgmma=True) == backward() and backward()["resident"]


def test_the_names_of_variants_are_those_that_the_sources_ask_for():
    sources = [path.read_text() for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cuh", ".cpp", ".cu")]
    asked = {name for source in sources for name in re.findall(r'is_switched_off\("(\w+)"\)', source)}
    assert asked == set(VARIANTS)
