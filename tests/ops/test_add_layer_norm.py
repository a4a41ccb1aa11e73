"""add_layer_norm against the composition of PyTorch's functions."""

import pytest
import torch

from lgfast import _extension
from lgfast.ops import add_layer_norm, add_layer_norm_unsupported_reason
from lgfast.ops.reference.add_layer_norm import add_layer_norm_bwd, add_layer_norm_fwd
from tests.ops.fused_layers_cases import EPS, assert_matches, compose_norm, in_dtype, norm_inputs, results

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
native = pytest.mark.skipif(not _extension.has_native(), reason="lgfast._C is not in use")


def op(x, residual, weight, bias, drop_scale):
    return add_layer_norm(x, residual, weight, bias, EPS, drop_scale)


def douts_like(x):
    return [torch.randn_like(x) for _ in range(2)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [8, 24, 32, 64, 192, 200, 320, 512])
@pytest.mark.parametrize("drop", [True, False])
def test_matches_float64(channels, dtype, drop):
    inputs = norm_inputs(4, 50, channels, dtype, drop=drop)
    douts = douts_like(inputs[0])
    assert_matches(results(op, inputs, douts), compose_norm, inputs, douts)


def test_reference_operation_matches_native():
    x, residual, weight, bias, scale = (tensor.detach() for tensor in norm_inputs(3, 5, 24))
    dy, dout = douts_like(x)
    y, out, mean, rstd = add_layer_norm_fwd(x, residual, weight, bias, scale, EPS)
    expected = torch.ops.lgfast.add_layer_norm_fwd(x, residual, weight, bias, scale, EPS)
    for value, native in zip((y, out, mean, rstd), expected, strict=True):
        torch.testing.assert_close(value, native)
    arguments = (dout, dy, y, weight, scale, mean, rstd)
    grads = add_layer_norm_bwd(*arguments)
    for value, native in zip(grads, torch.ops.lgfast.add_layer_norm_bwd(*arguments), strict=True):
        torch.testing.assert_close(value, native)


@pytest.mark.parametrize("drop", [True, False])
def test_gradcheck_in_float64(drop):
    inputs = in_dtype(norm_inputs(3, 4, 16, drop=drop), torch.float64)
    assert torch.autograd.gradcheck(op, inputs)


@pytest.mark.parametrize("used", [0, 1])
def test_one_output_alone_can_be_differentiated(used):
    inputs = norm_inputs(3, 4, 16)
    douts = [None, None]
    douts[used] = torch.randn(3, 4, 16)
    leaves = inputs[: 4 if used else 2]
    grads = torch.autograd.grad(op(*inputs)[used], leaves, douts[used])
    expected = torch.autograd.grad(compose_norm(*inputs)[used], leaves, douts[used])
    for grad, wanted in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-5, atol=1e-5)


def test_a_dropped_sample_passes_its_residual_through():
    inputs = norm_inputs(3, 4, 16)
    y, _ = op(*inputs)
    assert torch.equal(y[0], inputs[1][0])  # drop_scale[0] is 0
    y[0].sum().backward()
    assert not inputs[0].grad.any()


@native
def test_strided_and_misaligned_inputs_give_the_same_bits():
    inputs = norm_inputs(3, 6, 32)
    douts = douts_like(inputs[0])
    expected = results(op, inputs, douts)
    strided = [tensor.detach().transpose(0, 1).contiguous().transpose(0, 1) for tensor in inputs[:2]]
    shifted = [torch.cat([tensor.detach()[:1], tensor.detach()])[1:] for tensor in inputs[2:4]]
    leaves = [tensor.requires_grad_() for tensor in (*strided, *shifted)]
    actual = results(op, [*leaves, inputs[4]], [dout.mT.contiguous().mT for dout in douts])
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_result_does_not_depend_on_the_thread_count():
    inputs = norm_inputs(5, 100, 64)
    douts = douts_like(inputs[0])
    threads, runs = torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        runs.append(results(op, inputs, douts))
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))


def test_maps_with_more_dimensions():
    inputs = norm_inputs(3, 8, 16)
    y, out = op(inputs[0].unflatten(1, (2, 4)), inputs[1].unflatten(1, (2, 4)), *inputs[2:])
    expected_y, expected_out = op(*inputs)
    assert torch.equal(y.flatten(1, 2), expected_y) and torch.equal(out.flatten(1, 2), expected_out)


def test_empty_batch():
    inputs = norm_inputs(0, 4, 16)
    y, out, dx, dresidual, dweight, dbias = results(op, inputs, douts_like(inputs[0]))
    assert y.shape == out.shape == dx.shape == dresidual.shape == (0, 4, 16)
    assert not dweight.any() and not dbias.any()


@pytest.mark.parametrize("channels", [4, 20, 520])
def test_other_numbers_of_channels_run_the_composition(channels):
    inputs = norm_inputs(2, 3, channels)
    douts = douts_like(inputs[0])
    assert "multiple of 8 from 8 to 512, got " + str(channels) in add_layer_norm_unsupported_reason(inputs[0])
    expected = results(compose_norm, inputs, douts)
    assert all(torch.equal(a, b) for a, b in zip(results(op, inputs, douts), expected, strict=True))


def test_second_derivative_is_refused():
    inputs = norm_inputs(2, 3, 16)
    with pytest.raises(RuntimeError, match="no second derivative; call backward without create_graph"):
        torch.autograd.grad(op(*inputs)[1].sum(), inputs[0], create_graph=True)


def test_autocast_computes_in_the_widest_dtype():
    inputs = norm_inputs(2, 3, 16)
    half = inputs[0].detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y, out = op(half, *inputs[1:])
        expected = compose_norm(half, *inputs[1:])
    assert y.dtype == out.dtype == torch.float32
    torch.testing.assert_close(y, expected[0])
    torch.testing.assert_close(out, expected[1], rtol=1e-5, atol=1e-5)
    (y + out).sum().backward()
    assert half.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("drop", [True, False])
def test_opcheck(dtype, drop):
    x, residual, weight, bias, scale = in_dtype(norm_inputs(2, 3, 16, drop=drop), dtype)
    torch.library.opcheck(torch.ops.lgfast.add_layer_norm_fwd, (x, residual, weight, bias, scale, EPS))
    y, _, mean, rstd = torch.ops.lgfast.add_layer_norm_fwd(
        *(t.detach() for t in (x, residual, weight, bias)), scale, EPS
    )
    for dy in (None, torch.randn_like(y)):
        arguments = (torch.randn_like(y), dy, y, weight.detach(), scale, mean, rstd)
        torch.library.opcheck(torch.ops.lgfast.add_layer_norm_bwd, arguments)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_fullgraph_with_equal_bits(dynamic):
    compiled = torch.compile(op, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for batch in (2, 3):
        inputs = norm_inputs(batch, 4, 16)
        douts = douts_like(inputs[0])
        pairs = zip(results(compiled, inputs, douts), results(op, inputs, douts), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({0: torch.zeros(2, 3, 8)}, r"one shape \[B, ..., C\], got \[2, 3, 8\] and \[2, 3, 16\]"),
        ({2: torch.zeros(8)}, r"weight must be \[16\] for x \[2, 3, 16\], got \[8\]"),
        ({3: torch.zeros(1, 16)}, r"bias must be \[16\].*got \[1, 16\]"),
        ({4: torch.zeros(3)}, r"drop_scale must be \[2\].*got \[3\]"),
        ({0: torch.zeros(2, 3, 16, dtype=torch.int64)}, "x must be float32, .*, got torch.int64; cast it"),
        ({3: None}, "bias must be a tensor, got NoneType"),
        ({1: torch.zeros(2, 3, 16).half()}, "residual must be torch.float32 on cpu like x, got torch.float16 on cpu"),
        ({4: torch.zeros(2, dtype=torch.float64)}, "drop_scale must be torch.float32.*got torch.float64"),
        ({2: torch.zeros(16, device="meta")}, "weight must be torch.float32 on cpu like x, got torch.float32 on meta"),
    ],
)
def test_rejects_arguments_that_do_not_match(changes, message):
    inputs = [changes.get(i, tensor) for i, tensor in enumerate(norm_inputs(2, 3, 16))]
    with pytest.raises(ValueError, match=message):
        op(*inputs)


@native
def test_native_operation_names_what_does_not_fit():
    x, residual, weight, bias, scale = (tensor.detach() for tensor in norm_inputs(2, 3, 16))
    fwd = torch.ops.lgfast.add_layer_norm_fwd
    with pytest.raises(
        RuntimeError, match=r"lgfast::add_layer_norm: residual must have 96 elements for y \[2, 3, 16\]"
    ):
        fwd(x, residual[:1], weight, bias, scale, EPS)
    with pytest.raises(RuntimeError, match="bias must have dtype Float, got Half"):
        fwd(x, residual, weight, bias.half(), scale, EPS)
    for channels in (4, 20, 520):
        x, residual, weight, bias, scale = (tensor.detach() for tensor in norm_inputs(2, 3, channels))
        with pytest.raises(RuntimeError, match=f"channels must be a multiple of 8 from 8 to 512, got {channels}"):
            fwd(x, residual, weight, bias, scale, EPS)
