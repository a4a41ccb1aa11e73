"""The build: what it reports, that it is incremental, and that the package works without it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lgfast import _extension
from lgfast.ops import feature_mse
from tests.ops.feature_mse_cases import loss_and_grads, make_maps

ROOT = Path(__file__).resolve().parents[1]
BUILD = [sys.executable, "setup.py", "build_ext", "--inplace"]
needs_native = pytest.mark.skipif(not _extension.has_native(), reason="lgfast._C is not in use")

PURE_PYTHON = """
import sys, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import lgfast
    ours = [str(w.message) for w in caught if "lgfast" in str(w.message)]
    assert len(ours) == 1 and "reference ops" in ours[0] and "LGFAST_NATIVE=off" in ours[0], ours
    assert "torch" not in sys.modules
    from lgfast import _extension
    from lgfast.ops import feature_mse
    assert len([w for w in caught if "lgfast" in str(w.message)]) == 1
import torch
assert not _extension.has_native() and not _extension.has_cuda_kernels() and _extension.build_info() == {}
student, teacher = torch.load(PATH)
loss = feature_mse(student, teacher)
torch.save((loss.detach(), torch.autograd.grad(loss, student)), PATH)
"""


def test_pure_python_mode_warns_once_and_gives_the_same_numbers(tmp_path, monkeypatch):
    monkeypatch.setenv("LGFAST_NATIVE", "off")
    path = tmp_path / "maps.pt"
    student, teacher = make_maps((14, 14, 14), dtype=torch.float64)
    torch.save((student, teacher), path)
    script = PURE_PYTHON.replace("PATH", repr(str(path)))
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(torch.load(path), loss_and_grads(feature_mse, student, teacher), rtol=1e-12, atol=1e-15)


@needs_native
def test_build_info_says_what_was_built():
    info = _extension.build_info()
    assert info["torch_minimum"] == "2.11"
    assert re.match(r"2\.\d+", info["torch"])
    for name in ("cuda_compiler", "cuda_archs"):
        assert bool(info.get(name)) == _extension.has_cuda_kernels()


@needs_native
def test_errors_and_libraries_name_no_folder_of_the_build():
    with pytest.raises(RuntimeError, match=r"csrc/bias_gelu/\w+\.h:\d+, lgfast::bias_gelu: channels must be") as error:
        torch.ops.lgfast.bias_gelu_fwd(torch.zeros(2, 12), torch.zeros(12))
    assert not re.search(r"(^|[\s,:])/\w", str(error.value)), "an absolute path"
    libraries = list((ROOT / "lgfast").glob("*.so"))
    assert libraries
    for library in libraries:
        assert bytes(ROOT) not in library.read_bytes(), library.name


@needs_native
def test_cuda_library_is_loaded_exactly_where_torch_has_cuda():
    built = (ROOT / "lgfast" / "_cuda.so").exists()
    assert _extension.has_cuda_kernels() == (built and torch.version.cuda is not None)


@pytest.fixture
def same_targets(monkeypatch):
    """Builds compile for the GPUs that the library here was compiled for."""
    archs = _extension.build_info().get("cuda_archs", "").split()
    names = [re.sub(r"^(\d+)(\d[af]?)-.*", r"\1.\2", arch) for arch in archs if arch.endswith("-real")]
    ptx = {re.sub(r"^(\d+)(\d)-virtual", r"\1.\2", arch) for arch in archs if arch.endswith("-virtual")}
    if names:
        arch_list = " ".join(name + "+PTX" * (name.rstrip("af") in ptx) for name in names)
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", arch_list)


@pytest.mark.slow
@needs_native
def test_second_build_compiles_nothing(same_targets):
    subprocess.run(BUILD, cwd=ROOT, check=True, capture_output=True)
    again = subprocess.run(BUILD, cwd=ROOT, check=True, capture_output=True, text=True)
    assert "no work to do" in again.stdout


def test_every_schema_is_registered():
    names = re.findall(r'^"(\w+)\(', (ROOT / "lgfast" / "ops" / "schemas.inc").read_text(), flags=re.MULTILINE)
    assert "feature_mse_fwd" in names
    assert all(hasattr(torch.ops.lgfast, name) for name in names)


@pytest.mark.parametrize("switch", ["LGFAST_NATIVE", "LGFAST_CUDA"])
def test_build_rejects_an_unknown_switch(switch, monkeypatch):
    monkeypatch.setenv(switch, "yes")
    done = subprocess.run(BUILD, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert re.search(rf"lgfast: {switch} must be one of auto, (on, )?off, got 'yes'", done.stderr)


@needs_native
def test_build_rejects_an_unknown_architecture(monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0a hopper")
    done = subprocess.run(BUILD, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "TORCH_CUDA_ARCH_LIST entry 'hopper' is not like 8.0, 9.0a or 10.0+PTX" in " ".join(done.stderr.split())


@needs_native
@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda schemas: [*schemas, "not_built_yet(Tensor x) -> Tensor"], "it has no operation not_built_yet"),
        (
            lambda schemas: [schema.replace("float scale)", "float scale, int more)") for schema in schemas],
            "it has another operation feature_mse_bwd",
        ),
    ],
    ids=["missing", "other arguments"],
)
def test_a_build_older_than_the_sources_says_so(change, fault, monkeypatch):
    newer = change(_extension._schemas())
    monkeypatch.setattr(_extension, "_schemas", lambda: newer)
    with pytest.raises(ImportError, match=rf"older than the sources: {fault}; build again"):
        _extension._check_up_to_date()
