"""The operations under torch.func and forward-mode autograd, against their compositions in PyTorch."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from lgfast.ops import add_layer_norm, bias_gelu, feature_mse, short_attention, short_attention_qkvpacked


def attention(q, k, v):
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v)


def add_then_norm(x, residual, weight, bias):
    y = residual + x
    return y, F.layer_norm(y, weight.shape, weight, bias)


def squared_difference(student, teacher):
    maps = F.interpolate(student.transpose(1, 2).unflatten(2, (4, 4)), (8, 8), mode="bilinear")
    return F.mse_loss(maps, teacher)


# name: the operation, what it computes, and the shapes of its arguments
CASES = {
    "short_attention": (short_attention, attention, [(2, 17, 2, 32)] * 3),
    "short_attention_qkvpacked": (
        short_attention_qkvpacked,
        lambda qkv: attention(*qkv.unbind(2)).flatten(2),
        [(2, 17, 3, 2, 32)],
    ),
    "add_layer_norm": (add_layer_norm, add_then_norm, [(2, 5, 16), (2, 5, 16), (16,), (16,)]),
    "bias_gelu": (bias_gelu, lambda x, bias: F.gelu(x + bias), [(2, 5, 16), (16,)]),
    "feature_mse": (lambda s, t: feature_mse([s], [t]), squared_difference, [(2, 16, 3), (2, 3, 8, 8)]),
}


@pytest.fixture(params=CASES)
def case(request):
    op, composition, shapes = CASES[request.param]
    return op, composition, [torch.randn(shape) for shape in shapes]


@contextlib.contextmanager
def no_vmap_fallback():
    """PyTorch's own loop over a vmapped dimension, which it takes with a warning, is an error."""
    torch._C._functorch._set_vmap_fallback_enabled(False)
    try:
        yield
    finally:
        torch._C._functorch._set_vmap_fallback_enabled(True)


def weighted(function):
    """A scalar of a function's results in which every element counts differently."""

    def loss(*inputs):
        results = function(*inputs)
        results = results if isinstance(results, tuple) else (results,)
        return sum((x * torch.arange(1, x.numel() + 1).view(x.shape).sin()).sum() for x in results)

    return loss


def test_func_grad_equals_that_of_the_composition(case):
    op, composition, inputs = case
    for grad, expected in zip(*(torch.func.grad(weighted(f), 0)(*inputs) for f in (op, composition)), strict=True):
        torch.testing.assert_close(grad, expected)


def test_forward_mode_is_that_of_the_composition(case):
    op, composition, inputs = case
    tangents = [torch.randn_like(x) for x in inputs]
    with sdpa_kernel(SDPBackend.MATH):  # PyTorch's other attentions refuse forward mode
        (_, tangent), (_, expected) = (
            torch.func.jvp(weighted(f), tuple(inputs), tuple(tangents)) for f in (op, composition)
        )
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(x, t) for x, t in zip(inputs, tangents, strict=True)]
            dual_tangent = forward_ad.unpack_dual(weighted(op)(*duals)).tangent
    torch.testing.assert_close(tangent, expected)
    torch.testing.assert_close(dual_tangent, expected)


def test_vmap_equals_a_loop(case):
    op, _, inputs = case
    many = [torch.stack([x, x.flip(0), 2 * x]).requires_grad_() for x in inputs]
    with no_vmap_fallback(), sdpa_kernel(SDPBackend.MATH):  # SDPA runs where there are no kernels
        loss = torch.vmap(weighted(op))(*many)
        grads = torch.autograd.grad(loss.sum(), many[0])
    expected = torch.stack([weighted(op)(*elements) for elements in zip(*many, strict=True)])
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(grads, torch.autograd.grad(expected.sum(), many[0]))


def test_vmap_over_the_second_argument_alone():
    x, biases = torch.randn(2, 5, 16), torch.randn(16, 3)
    with no_vmap_fallback():
        out = torch.vmap(bias_gelu, in_dims=(None, 1))(x, biases)
    torch.testing.assert_close(out, torch.stack([bias_gelu(x, bias) for bias in biases.T]))


def test_grad_per_sample(case):
    op, composition, inputs = case
    many = [torch.stack([x, 2 * x]) for x in inputs]
    with sdpa_kernel(SDPBackend.MATH):  # PyTorch loops over the others, with a warning
        grads, expected = (torch.vmap(torch.func.grad(weighted(f)))(*many) for f in (op, composition))
    torch.testing.assert_close(grads, expected)
