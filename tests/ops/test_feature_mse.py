"""feature_mse against its plain PyTorch definition."""

import pytest
import torch

from lgfast.ops import feature_mse, reference

TEACHER_MAPS = [(16, 32), (32, 16), (64, 8)]  # channels, h = w
STUDENT_SIDES = {  # h = w of the three guided maps; names sharing a row share shapes
    "deit_tiny t2t_vit_7 t2t_vit_14 convit_tiny": (14, 14, 14),
    "pit_ti": (27, 14, 7),
    "pvt_tiny pvt_v2_b0": (56, 28, 7),
    "cvt_13": (56, 14, 14),
}


def make_maps(sides, batch=2, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student = [torch.randn(batch, n * n, c, generator=generator) for n, (c, _) in zip(sides, TEACHER_MAPS, strict=True)]
    teacher = [torch.randn(batch, c, n, n, generator=generator) for c, n in TEACHER_MAPS]
    teacher = [maps.to(dtype).contiguous(memory_format=torch.channels_last) for maps in teacher]
    return [maps.to(dtype).requires_grad_() for maps in student], teacher


def loss_and_grads(op, student, *args):
    loss = op(student, *args)
    return loss.detach(), torch.autograd.grad(loss, student)


def double_truth(student, teacher, grids):
    student = [maps.detach().double().requires_grad_() for maps in student]
    return loss_and_grads(reference.feature_mse, student, [maps.double() for maps in teacher], grids)


def assert_within_twice_plain(value, plain, truth):
    """The op's largest error is at most twice that of plain PyTorch in the same dtype, plus one rounding."""
    floor = torch.finfo(value.dtype).eps * truth.abs().max()
    assert (value.double() - truth).abs().max() <= 2 * (plain.double() - truth).abs().max() + floor


@pytest.mark.parametrize("model", STUDENT_SIDES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_matches_reference_at_every_recipe_shape(model, dtype):
    grids = [(n, n) for n in STUDENT_SIDES[model]]
    student, teacher = make_maps(STUDENT_SIDES[model], dtype=dtype)
    loss, grads = loss_and_grads(feature_mse, student, teacher)
    plain, plain_grads = loss_and_grads(reference.feature_mse, student, teacher, grids)
    truth, true_grads = double_truth(student, teacher, grids)
    assert loss.dtype == torch.float32
    assert_within_twice_plain(loss, plain, truth)
    for grad, plain_grad, true_grad in zip(grads, plain_grads, true_grads, strict=True):
        assert grad.dtype == dtype
        assert_within_twice_plain(grad, plain_grad, true_grad)


def test_gradcheck_in_float64():
    student = [torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)]
    teacher = [torch.randn(2, 3, 4, 5, dtype=torch.float64)]
    assert torch.autograd.gradcheck(lambda s: feature_mse([s], teacher, [(2, 3)]), student)


def test_opcheck():
    student, teacher = make_maps((14, 14, 14))
    torch.library.opcheck(torch.ops.lgfast.feature_mse_fwd, (student, teacher, [14] * 6, 4.0))
    torch.library.opcheck(torch.ops.lgfast.feature_mse_bwd, (torch.tensor(2.0), torch.randn(10), 0.5))


def test_compiles_fullgraph():
    student, teacher = make_maps((14, 14, 14))
    expected, expected_grads = loss_and_grads(feature_mse, student, teacher)
    loss, grads = loss_and_grads(torch.compile(feature_mse, fullgraph=True, backend="aot_eager"), student, teacher)
    assert torch.equal(loss, expected)
    assert all(torch.equal(a, b) for a, b in zip(grads, expected_grads, strict=True))
