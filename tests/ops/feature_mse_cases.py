"""Shapes, inputs and bounds of the feature_mse tests, on the CPU, on the GPU and in the emulation."""

import torch

from lgfast.ops import reference
from tests.rounding import assert_rounded, truth

TEACHER_MAPS = [(16, 32), (32, 16), (64, 8)]  # channels, h = w
STUDENT_SIDES = {  # h = w of the three guided maps; models in one row share shapes
    "deit_tiny t2t_vit_7 t2t_vit_14 convit_tiny": (14, 14, 14),
    "pit_ti": (27, 14, 7),
    "pvt_tiny pvt_v2_b0": (56, 28, 7),
    "cvt_13": (56, 14, 14),
}


def make_maps(sides, batch=2, dtype=torch.float32, device="cpu"):
    """Student maps that want gradients, and channels-last teacher maps."""
    student = [torch.randn(batch, n * n, c) for n, (c, _) in zip(sides, TEACHER_MAPS, strict=True)]
    teacher = [torch.randn(batch, c, n, n) for c, n in TEACHER_MAPS]
    teacher = [maps.to(device, dtype).contiguous(memory_format=torch.channels_last) for maps in teacher]
    return [maps.to(device, dtype).requires_grad_() for maps in student], teacher


def loss_and_grads(op, student, *args):
    loss = op(student, *args)
    return loss.detach(), torch.autograd.grad(loss, student)


def reference_loss_and_grads(student, teacher, grids, dtype=None):
    """Compute the reference's loss and gradients through autograd, with the maps in `dtype`."""
    student = [maps.detach().to(dtype).requires_grad_() for maps in student]
    return loss_and_grads(reference.feature_mse, student, [maps.detach().to(dtype) for maps in teacher], grids)


def assert_matches_reference(loss, grads, student, teacher, grids):
    def compute():
        return reference_loss_and_grads(student, teacher, grids, torch.float64)

    true_loss, true_grads = truth(compute, student[0].dtype)
    assert_rounded(loss, true_loss, "loss")
    for grad, true_grad, maps in zip(grads, true_grads, student, strict=True):
        assert grad.dtype == maps.dtype
        assert_rounded(grad, true_grad, "gradient")
