"""What rounding explains is accepted, whatever the order of sums; an error of one part in a hundred is not.

In bfloat16, whose eps is nearly one part in a hundred, the error is three parts.
"""

import pytest
import torch
import torch.nn.functional as F

from tests.rounding import assert_rounded, truth

WRONG = {torch.float32: 1.01, torch.float16: 1.01, torch.bfloat16: 1.03}


class WrongGradient(torch.autograd.Function):
    """x; in its gradient the first half of the columns is multiplied by `factor`."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        first, second = grad.chunk(2, -1)
        return torch.cat([first * ctx.factor, second], -1), None


def layers(x, weight, shift, dout, factor=1.0):
    """A norm, a product and a softmax; `shift` moves all scores alike, so that the terms of its gradient cancel."""
    leaves = [tensor.detach().requires_grad_() for tensor in (x, weight, shift)]
    scores = F.layer_norm(leaves[0], x.shape[-1:]) @ leaves[1] + leaves[2]
    out = WrongGradient.apply(scores, factor).softmax(-1)
    names = ("out", "dx", "dweight", "dshift")
    return dict(zip(names, (out.detach(), *torch.autograd.grad(out, leaves, dout)), strict=True))


def inputs(dtype):
    shapes = (400, 64), (64, 80), (1,), (400, 80)
    return [(torch.randn(shape) / size).to(dtype) for shape, size in zip(shapes, (1, 8, 1, 1), strict=True)]


def true_layers(tensors):
    wide = [x.double() for x in tensors]
    return truth(lambda: layers(*wide), tensors[0].dtype)


@pytest.mark.parametrize("dtype", WRONG)
def test_accepts_what_is_computed_in_the_dtype(dtype):
    tensors = inputs(dtype)
    for name, expected in true_layers(tensors).items():
        assert_rounded(layers(*tensors)[name], expected, name)


@pytest.mark.parametrize("dtype", WRONG)
@pytest.mark.parametrize("name", ["out", "dx", "dweight"])
def test_a_wrong_factor_is_refused_in_any_dtype(name, dtype):
    tensors = inputs(dtype)
    with pytest.raises(AssertionError, match=rf"{name}: \w+ error"):
        assert_rounded(layers(*tensors)[name] * WRONG[dtype], true_layers(tensors)[name], name)


def test_one_part_in_a_hundred_is_refused_in_a_gradient_that_cancels():
    tensors = inputs(torch.float32)
    expected = true_layers(tensors)["dshift"]
    assert expected.exact.abs() < 1e-12
    with pytest.raises(AssertionError, match=r"dshift: \w+ error"):
        assert_rounded(layers(*tensors, factor=1.01)["dshift"], expected, "dshift")


def test_one_wrong_element_is_refused():
    tensors = inputs(torch.float32)
    actual, expected = layers(*tensors)["dx"], true_layers(tensors)["dx"]
    actual.view(-1)[actual.abs().argmax()] *= 1.01
    with pytest.raises(AssertionError, match=r"rms error|largest error"):
        assert_rounded(actual, expected)


@pytest.mark.parametrize("terms", [torch.randn, torch.rand], ids=["cancelling", "positive"])
def test_any_order_of_a_sum_is_accepted(terms):
    x = terms(1000, 50)
    expected = truth(lambda: x.double().sum(0), torch.float32)
    for actual in (x.sum(0), x.cumsum(0)[-1], x.flip(0).cumsum(0)[-1], x.view(10, 100, 50).sum(0).sum(0)):
        assert_rounded(actual, expected)


def test_leaves_the_generator_alone():
    state = torch.get_rng_state()
    true_layers([torch.ones(2, 4), torch.ones(4, 4), torch.ones(1), torch.ones(2, 4)])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_refuses_what_is_not_finite(value):
    expected = truth(lambda: torch.ones(3).double() * 3, torch.bfloat16)
    with pytest.raises(AssertionError):
        assert_rounded(torch.tensor([3.0, value, 3.0]), expected)


def test_refuses_another_shape():
    with pytest.raises(AssertionError, match=r"dq: shape \(1,\), expected \(3,\)"):
        assert_rounded(torch.ones(1), truth(lambda: torch.ones(3).double(), torch.float32), "dq")


def test_accepts_empty_tensors():
    assert_rounded(torch.empty(0, 3), truth(lambda: torch.empty(0, 3).double() * 2, torch.bfloat16))
