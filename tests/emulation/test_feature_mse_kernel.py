"""The CUDA kernels of feature_mse, run on the CPU by the emulation under AddressSanitizer, against the reference.

Every case runs under several schedules of its threads, which must give the same bits.
"""

import struct
import subprocess

import pytest
import torch

from tests.emulation.build import build
from tests.ops.feature_mse_cases import STUDENT_SIDES, assert_matches_reference, make_maps

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
DLOSS, SCALE, SEEDS = 2.5, 0.5, 3


@pytest.fixture(scope="module")
def driver():
    return build("feature_mse_driver", ["tests/emulation/feature_mse_driver.cpp"])


@pytest.fixture
def run(driver, tmp_path):
    """Runs the kernels: (loss, gradients, gradients times DLOSS * SCALE)."""

    def call(student, teacher, grids, grad_scale=1.0):
        (tmp_path / "request").write_bytes(request(student, teacher, grids, grad_scale))
        command = [driver, tmp_path / "request", tmp_path / "result"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return parse((tmp_path / "result").read_bytes(), student, grad_scale)

    return call


def request(student, teacher, grids, grad_scale) -> bytes:
    dtype, batch = student[0].dtype, student[0].shape[0]
    head = struct.pack("<5q", batch, len(student), SEEDS, dtype.itemsize, dtype == torch.bfloat16)
    head += struct.pack("<3d", grad_scale, DLOSS, SCALE)
    body = b""
    for s, t, grid in zip(student, teacher, grids, strict=True):
        assert s.stride(2) == 1 and t.stride(1) == 1
        elements = [storage(s), storage(t)]
        strides = (len(elements[0]), *s.stride()[:2], len(elements[1]), t.stride(0), *t.stride()[2:])
        head += struct.pack("<12q", s.shape[2], *grid, *t.shape[2:], *strides)
        body += b"".join(part.contiguous().view(torch.uint8).numpy().tobytes() for part in elements)
    return head + body


def storage(maps):
    """The elements from the first to the last that a view reaches, as they lie in memory."""
    last = sum((size - 1) * stride for size, stride in zip(maps.shape, maps.stride(), strict=True))
    return maps.detach().as_strided((last + 1 if maps.numel() else 0,), (1,))


def parse(result: bytes, student, grad_scale):
    dtype = student[0].dtype
    loss_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    values = torch.frombuffer(bytearray(result), dtype=torch.uint8)
    loss, rest = values[: loss_dtype.itemsize].view(loss_dtype)[0], values[loss_dtype.itemsize :].clone().view(dtype)
    if grad_scale == 0:
        return loss, rest, rest
    numels = [maps.numel() for maps in student]
    parts = [part.view_as(maps) for part, maps in zip(rest.split(numels * 2), student * 2, strict=True)]
    return loss, parts[: len(student)], parts[len(student) :]


@pytest.mark.parametrize("model", STUDENT_SIDES)
def test_matches_reference_at_every_recipe_shape(run, model):
    student, teacher = make_maps(STUDENT_SIDES[model], batch=1, dtype=torch.bfloat16)
    grids = [(n, n) for n in STUDENT_SIDES[model]]
    loss, grads, _ = run(student, teacher, grids)
    assert_matches_reference(loss, grads, student, teacher, grids)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 5, 24])
def test_matches_reference_in_every_dtype_and_number_of_channels(run, dtype, channels):
    student = [torch.randn(2, 6, channels, dtype=dtype), torch.randn(2, 20, channels, dtype=dtype)]
    teacher = [torch.randn(2, 5, 7, channels, dtype=dtype).permute(0, 3, 1, 2) for _ in student]
    grids = [(3, 2), (2, 10)]
    loss, grads, _ = run(student, teacher, grids)
    assert_matches_reference(loss, grads, student, teacher, grids)


def test_reads_slices_in_place(run):
    tokens, padded = torch.randn(2, 10, 20), torch.randn(2, 6, 6, 12)
    student, teacher = [tokens[:, 1:, 2:10]], [padded[:, 1:6, 2:6, 3:11].permute(0, 3, 1, 2)]
    loss, grads, _ = run(student, teacher, [(3, 3)])
    assert_matches_reference(loss, grads, student, teacher, [(3, 3)])


def test_map_that_allows_only_some_channels_at_once(run):
    side = 100  # 16 channels need 640 KB of shared memory: blocks of 2
    student, teacher = [torch.randn(1, side * side, 6)], [torch.randn(1, 3, 3, 6).permute(0, 3, 1, 2)]
    loss, grads, _ = run(student, teacher, [(side, side)])
    assert_matches_reference(loss, grads, student, teacher, [(side, side)])


def test_backward_kernel_multiplies_by_two_scalars(run):
    student, teacher = make_maps((14, 14, 14), batch=1)
    _, grads, scaled = run(student, teacher, [(14, 14)] * 3)
    for grad, product in zip(grads, scaled, strict=True):
        torch.testing.assert_close(product, grad * (DLOSS * SCALE), rtol=1e-6, atol=0)


def test_no_gradient_where_none_is_wanted(run):
    student, teacher = make_maps((14, 14, 14), batch=1)
    expected, _, _ = run(student, teacher, [(14, 14)] * 3)
    loss, grads, _ = run(student, teacher, [(14, 14)] * 3, grad_scale=0.0)
    assert loss == expected and grads.numel() == 0


def test_empty_batch_gives_zero(run):
    student, teacher = make_maps((14, 14, 14), batch=0)
    loss, _, _ = run(student, teacher, [(14, 14)] * 3)
    assert loss == 0
