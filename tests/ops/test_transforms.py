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
    return F.mse_loss(maps, teacher.detach())  # a constant


def packed_with_bias(qkv, bias):
    """The bias is added without its gradient, which the operation gives it."""
    return short_attention_qkvpacked(qkv + bias.detach().view(qkv.shape[2:]), added_bias=bias)


def attention_with_bias(qkv, bias):
    return attention(*(qkv + bias.view(qkv.shape[2:])).unbind(2)).flatten(2)


def add_scaled_layer_norm(x, residual, weight, bias, drop_scale):
    return add_layer_norm(x, residual, weight, bias, drop_scale=drop_scale)


def add_scaled_then_norm(x, residual, weight, bias, drop_scale):
    return add_then_norm(x * drop_scale[:, None, None], residual, weight, bias)


# name: the operation, what it computes, and the shapes of its arguments, with each optional tensor and without
CASES = {
    "short_attention": (short_attention, attention, [(2, 17, 2, 32)] * 3),
    "short_attention_qkvpacked": (
        short_attention_qkvpacked,
        lambda qkv: attention(*qkv.unbind(2)).flatten(2),
        [(2, 17, 3, 2, 32)],
    ),
    "short_attention_qkvpacked, added_bias": (packed_with_bias, attention_with_bias, [(2, 17, 3, 2, 32), (192,)]),
    "add_layer_norm, drop_scale": (
        add_scaled_layer_norm,
        add_scaled_then_norm,
        [(2, 5, 16), (2, 5, 16), (16,), (16,), (2,)],
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
    arguments = tuple(range(len(inputs)))
    grads, expected = (torch.func.grad(weighted(f), arguments)(*inputs) for f in (op, composition))
    for grad, expected_grad in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, expected_grad)


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
        grads = torch.autograd.grad(loss.sum(), many, allow_unused=True)
    expected = torch.stack([weighted(op)(*elements) for elements in zip(*many, strict=True)])
    torch.testing.assert_close(loss, expected)
    for grad, expected_grad in zip(grads, torch.autograd.grad(expected.sum(), many, allow_unused=True), strict=True):
        torch.testing.assert_close(grad, expected_grad)


def test_vmap_over_one_argument_alone(case):
    """Each argument in turn is mapped, in its last dimension; the others are shared, and their gradients are sums."""
    op, composition, inputs = case
    for batched in range(len(inputs)):
        leaves = [x.clone().requires_grad_() for x in inputs]
        leaves[batched] = torch.stack([inputs[batched], 2 * inputs[batched]], dim=-1).requires_grad_()
        dims = tuple(-1 if k == batched else None for k in range(len(inputs)))
        with no_vmap_fallback(), sdpa_kernel(SDPBackend.MATH):
            loss = torch.vmap(weighted(op), in_dims=dims)(*leaves)
            grads = torch.autograd.grad(loss.sum(), leaves, allow_unused=True)
        elements = leaves[batched].unbind(-1)
        expected = torch.stack(
            [weighted(composition)(*leaves[:batched], one, *leaves[batched + 1 :]) for one in elements]
        )
        torch.testing.assert_close(loss, expected)
        expected_grads = torch.autograd.grad(expected.sum(), leaves, allow_unused=True)
        for grad, expected_grad in zip(grads, expected_grads, strict=True):
            torch.testing.assert_close(grad, expected_grad)


def test_eager_and_compiled_gradients_are_those_of_the_composition(case):
    op, composition, inputs = case
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    found = []
    for function in (op, compiled, composition):
        leaves = [x.clone().requires_grad_() for x in inputs]
        loss = weighted(function)(*leaves)
        found.append(torch.autograd.grad(loss, leaves, allow_unused=True))
    for eager, traced, expected in zip(*found, strict=True):
        torch.testing.assert_close(eager, expected)
        torch.testing.assert_close(traced, expected)


def test_grad_per_sample(case):
    op, composition, inputs = case
    many = [torch.stack([x, 2 * x]) for x in inputs]
    with sdpa_kernel(SDPBackend.MATH):  # PyTorch loops over the others, with a warning
        grads, expected = (torch.vmap(torch.func.grad(weighted(f)))(*many) for f in (op, composition))
    torch.testing.assert_close(grads, expected)
