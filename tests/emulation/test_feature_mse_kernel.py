"""The CUDA kernels of feature_mse, run on the CPU by the emulation under AddressSanitizer, against the reference.

Every case runs under several schedules of its threads, which must give the same bits.
"""

import struct

import pytest
import torch

from tests.emulation.build import build
from tests.emulation.driver import DTYPES, raw, run_driver
from tests.ops.feature_mse_cases import STUDENT_SIDES, assert_matches_reference, make_maps

pytestmark = pytest.mark.slow

DLOSS, SCALE, SEEDS, WEIGHT = 2.5, 0.5, 5, 1.75


@pytest.fixture(scope="module")
def driver():
    return build("feature_mse_driver", ["tests/emulation/feature_mse_driver.cpp"])


@pytest.fixture
def run(driver, tmp_path):
    """Runs the kernels: (loss, gradients, gradients times DLOSS * SCALE); the gradients without WEIGHT."""

    def call(student, teacher, grids, grad_scale=1.0, counter=0):
        dtype = student[0].dtype
        grads = [(maps.shape, dtype) for maps in student] if grad_scale else []
        scalar = ((), torch.float64 if dtype == torch.float64 else torch.float32)
        asked = [request(student, teacher, grids, grad_scale / WEIGHT, counter)]
        (loss, weighted, *rest), _ = run_driver(driver, tmp_path, asked, [scalar, scalar, *grads, *grads])
        assert torch.equal(weighted, WEIGHT * loss)
        return loss, rest[: len(grads)], rest[len(grads) :]

    return call


def request(student, teacher, grids, grad_scale, counter) -> bytes:
    dtype, batch = student[0].dtype, student[0].shape[0]
    head = struct.pack("<5q", batch, len(student), SEEDS, DTYPES.index(dtype), counter)
    head += struct.pack("<4d", grad_scale, DLOSS, SCALE, WEIGHT)
    body = b""
    for s, t, grid in zip(student, teacher, grids, strict=True):
        assert s.stride(2) == 1 and t.stride(1) == 1
        elements = [storage(s), storage(t)]
        strides = (len(elements[0]), *s.stride()[:2], len(elements[1]), t.stride(0), *t.stride()[2:])
        head += struct.pack("<12q", s.shape[2], *grid, *t.shape[2:], *strides)
        body += b"".join(map(raw, elements))
    return head + body


def storage(maps):
    """The elements from the first to the last that a view reaches, as they lie in memory."""
    last = sum((size - 1) * stride for size, stride in zip(maps.shape, maps.stride(), strict=True))
    return maps.detach().as_strided((last + 1 if maps.numel() else 0,), (1,))


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("grid", "teacher_side"),
    [((8, 8), (8, 8)), ((8, 3), (8, 9)), ((3, 8), (9, 8)), ((9, 3), (4, 8)), ((3, 40), (1, 1)), ((1, 1), (7, 30))],
    ids=["nothing", "columns", "rows", "both maps", "the teacher", "the student"],
)
def test_matches_reference_whatever_is_resized(run, grid, teacher_side, dtype):
    student = [torch.randn(2, grid[0] * grid[1], 16, dtype=dtype)]
    teacher = [torch.randn(2, *teacher_side, 16, dtype=dtype).permute(0, 3, 1, 2)]
    loss, grads, _ = run(student, teacher, [grid])
    assert_matches_reference(loss, grads, student, teacher, [grid])


def test_maps_that_allow_only_some_channels_at_once(run):
    side = 121  # a channel of the teacher needs 58 KB of shared memory: no vector of four has room
    student, teacher = [torch.randn(1, 122, 6)], [torch.randn(1, side, side, 6).permute(0, 3, 1, 2)]
    loss, grads, _ = run(student, teacher, [(122, 1)])
    assert_matches_reference(loss, grads, student, teacher, [(122, 1)])


@pytest.mark.parametrize("rows", [(31, 32), (5, 64), (64, 64), (33, 40)])
def test_parts_of_an_image_join_without_a_seam(run, rows):
    student = [torch.randn(1, rows[0] * 5, 8)]
    teacher = [torch.randn(1, rows[1], 6, 8).permute(0, 3, 1, 2)]
    loss, grads, _ = run(student, teacher, [(rows[0], 5)])
    assert_matches_reference(loss, grads, student, teacher, [(rows[0], 5)])


def test_backward_kernel_multiplies_by_two_scalars(run):
    student, teacher = make_maps((14, 14, 14), batch=1)
    _, grads, scaled = run(student, teacher, [(14, 14)] * 3)
    for grad, product in zip(grads, scaled, strict=True):
        torch.testing.assert_close(product, grad * (DLOSS * SCALE), rtol=1e-6, atol=0)


def test_a_second_kernel_adds_the_losses_where_the_launch_has_no_counter(run):
    student, teacher = make_maps((14, 14, 14), batch=3)
    expected, grads, _ = run(student, teacher, [(14, 14)] * 3)
    loss, others, _ = run(student, teacher, [(14, 14)] * 3, counter=-1)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)  # other sums
    assert all(torch.equal(a, b) for a, b in zip(grads, others, strict=True))


@pytest.mark.parametrize(("counter", "complaint"), [(1, "is not 0 after the launch"), (9999, "another launch uses it")])
def test_a_counter_that_another_launch_uses_is_found(run, counter, complaint):
    student, teacher = make_maps((14, 14, 14), batch=1)
    with pytest.raises(AssertionError, match=complaint):
        run(student, teacher, [(14, 14)] * 3, counter=counter)


def test_no_gradient_where_none_is_wanted(run):
    student, teacher = make_maps((14, 14, 14), batch=1)
    expected, _, _ = run(student, teacher, [(14, 14)] * 3)
    loss, grads, _ = run(student, teacher, [(14, 14)] * 3, grad_scale=0.0)
    assert loss == expected and grads == []


def test_empty_batch_gives_zero(run):
    student, teacher = make_maps((14, 14, 14), batch=0)
    loss, _, _ = run(student, teacher, [(14, 14)] * 3)
    assert loss == 0
