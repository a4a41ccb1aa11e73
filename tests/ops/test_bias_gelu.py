"""bias_gelu against PyTorch's exact GELU."""

import math

import pytest
import torch
import torch.nn.functional as F

from lgfast import _extension
from lgfast.ops import bias_gelu, bias_gelu_unsupported_reason
from lgfast.ops.reference.bias_gelu import bias_gelu_bwd, bias_gelu_fwd
from tests.ops.fused_layers_cases import assert_matches, compose_gelu, in_dtype, results

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
native = pytest.mark.skipif(not _extension.has_native(), reason="lgfast._C is not in use")


def make_inputs(rows=40, channels=64, dtype=torch.float32):
    """x [B, N, C] that reaches both tails, and bias [C]; leaves."""
    x = torch.randn(2, rows, channels) * torch.tensor([1.0, 4.0]).view(2, 1, 1)
    return [tensor.to(dtype).requires_grad_() for tensor in (x, torch.randn(channels))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [8, 72, 768])
def test_matches_float64(channels, dtype):
    inputs = make_inputs(channels=channels, dtype=dtype)
    dout = torch.randn_like(inputs[0])
    assert_matches(results(bias_gelu, inputs, [dout]), compose_gelu, inputs, [dout])


def test_values_stay_within_a_few_roundings_over_the_whole_line():
    x = torch.linspace(-14, 14, 80_000).view(-1, 8).requires_grad_()
    out = bias_gelu(x, torch.zeros(8))
    (grad,) = torch.autograd.grad(out.sum(), x)
    exact = x.detach().double().requires_grad_()
    exact_out = F.gelu(exact)
    (exact_grad,) = torch.autograd.grad(exact_out.sum(), exact)
    # Half a dozen float32 roundings of cdf <= 1 and of x pdf <= 0.25, times |x|.
    bound = 4 * torch.finfo(torch.float32).eps * exact.detach().abs().clamp(min=1)
    assert ((out.double() - exact_out).abs() <= bound).all()
    assert ((grad.double() - exact_grad).abs() <= bound).all()


@native
def test_bfloat16_stays_within_one_step_of_the_exact_value_in_both_tails():
    x = torch.linspace(-6, 6, 8_000).bfloat16().view(-1, 8).requires_grad_()
    out = bias_gelu(x, torch.zeros(8).bfloat16())
    (grad,) = torch.autograd.grad(out.sum(), x)
    exact = x.detach().double()
    cdf, slope = torch.special.ndtr(exact), exact * torch.exp(-exact.square() / 2) / math.sqrt(2 * math.pi)
    step = torch.finfo(torch.bfloat16).eps
    assert ((out.double() - exact * cdf).abs() <= step * (exact * cdf).abs()).all()
    assert ((grad.double() - (cdf + slope)).abs() <= step * (cdf + slope.abs())).all()


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_infinite_and_missing_values(dtype):
    x = torch.tensor([[float("inf"), float("nan"), 0.0, -0.0, 1e30, -1e30, -40.0, 40.0]]).to(dtype)
    out = bias_gelu(x, torch.zeros(8).to(dtype))[0]
    assert out[0] == float("inf") and out[1].isnan()
    assert out[2:].tolist() == [0, 0, x[0, 4].item(), 0, 0, 40]


def test_reference_operation_matches_native():
    x, bias = (tensor.detach() for tensor in make_inputs(channels=16))
    dout = torch.randn_like(x)
    torch.testing.assert_close(bias_gelu_fwd(x, bias), torch.ops.lgfast.bias_gelu_fwd(x, bias))
    expected = torch.ops.lgfast.bias_gelu_bwd(dout, x, bias)
    torch.testing.assert_close(bias_gelu_bwd(dout, x, bias), expected)


def test_gradcheck_in_float64():
    assert torch.autograd.gradcheck(bias_gelu, in_dtype(make_inputs(3, 8), torch.float64))


@native
def test_strided_and_misaligned_inputs_give_the_same_bits():
    x, bias = make_inputs()
    dout = torch.randn_like(x)
    expected = results(bias_gelu, [x, bias], [dout])
    strided = x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    shifted = torch.cat([bias.detach()[:1], bias.detach()])[1:].requires_grad_()
    actual = results(bias_gelu, [strided, shifted], [dout.mT.contiguous().mT])
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_result_does_not_depend_on_the_thread_count():
    inputs = make_inputs(rows=200)
    dout = torch.randn_like(inputs[0])
    threads, runs = torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        runs.append(results(bias_gelu, inputs, [dout]))
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))


def test_empty_batch():
    out, dx, dbias = results(bias_gelu, make_inputs(rows=0), [torch.empty(2, 0, 64)])
    assert out.shape == dx.shape == (2, 0, 64) and not dbias.any()


def test_other_numbers_of_channels_run_the_composition():
    inputs = make_inputs(channels=12)
    dout = torch.randn_like(inputs[0])
    assert bias_gelu_unsupported_reason(inputs[0]) == "channels must be a multiple of 8, got 12"
    expected = results(compose_gelu, inputs, [dout])
    assert all(torch.equal(a, b) for a, b in zip(results(bias_gelu, inputs, [dout]), expected, strict=True))


@native
def test_native_operation_names_what_does_not_fit():
    x, bias = (tensor.detach() for tensor in make_inputs(channels=12))
    with pytest.raises(RuntimeError, match="lgfast::bias_gelu: channels must be a multiple of 8, got 12"):
        torch.ops.lgfast.bias_gelu_fwd(x, bias)
    x, bias = (tensor.detach() for tensor in make_inputs(channels=16))
    with pytest.raises(RuntimeError, match=r"bias must be \[16\] Float, got \[16\] Half"):
        torch.ops.lgfast.bias_gelu_fwd(x, bias.half())


def test_second_derivative_is_refused():
    inputs = make_inputs()
    with pytest.raises(RuntimeError, match="no second derivative; call backward without create_graph"):
        torch.autograd.grad(bias_gelu(*inputs).sum(), inputs, create_graph=True)


def test_autocast_computes_in_its_dtype():
    x, bias = make_inputs()
    with torch.autocast("cpu", torch.bfloat16):
        out = bias_gelu(x, bias)
    assert torch.equal(out, bias_gelu(x.bfloat16(), bias.bfloat16()))
    out.sum().backward()
    assert x.grad.dtype == bias.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_opcheck(dtype):
    x, bias = make_inputs(3, 16, dtype)
    torch.library.opcheck(torch.ops.lgfast.bias_gelu_fwd, (x, bias))
    arguments = (torch.randn_like(x), x.detach(), bias.detach())
    torch.library.opcheck(torch.ops.lgfast.bias_gelu_bwd, arguments)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_fullgraph_with_equal_bits(dynamic):
    compiled = torch.compile(bias_gelu, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for rows in (3, 4):
        inputs = make_inputs(rows)
        dout = torch.randn_like(inputs[0])
        pairs = zip(results(compiled, inputs, [dout]), results(bias_gelu, inputs, [dout]), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("x", "bias", "message"),
    [
        (torch.zeros(16), torch.zeros(16), r"x must be \[B, ..., C\] and bias \[C\], got \[16\] and \[16\]"),
        (torch.zeros(2, 16), torch.zeros(8), r"got \[2, 16\] and \[8\]"),
        (torch.zeros(2, 16).int(), torch.zeros(16).int(), "x must be float32, .*, got torch.int32; cast it"),
        (torch.zeros(2, 16), None, "bias must be a tensor, got NoneType"),
        (torch.zeros(2, 16), torch.zeros(16).half(), "bias must be torch.float32 on cpu like x, got torch.float16"),
        (torch.zeros(2, 16), torch.zeros(16, device="meta"), "got torch.float32 on meta; cast or move"),
    ],
)
def test_rejects_arguments_that_do_not_match(x, bias, message):
    with pytest.raises(ValueError, match=message):
        bias_gelu(x, bias)
