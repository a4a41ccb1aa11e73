"""add_layer_norm and bias_gelu on a GPU: parity with float64, bits, streams, graphs, compilation."""

import pytest
import torch

from lgfast import _extension
from lgfast.ops import add_layer_norm, bias_gelu
from tests.ops.fused_layers_cases import EPS, assert_matches, compose_gelu, compose_norm, norm_inputs, results

pytestmark = pytest.mark.gpu
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def norm(x, residual, weight, bias, drop_scale):
    return add_layer_norm(x, residual, weight, bias, EPS, drop_scale)


def norm_case(batch=8, tokens=197, channels=192, dtype=torch.bfloat16, drop=True):
    inputs = norm_inputs(batch, tokens, channels, dtype, "cuda", drop)
    return norm, compose_norm, inputs, [torch.randn_like(inputs[0]) for _ in range(2)]


def gelu_case(rows=8 * 197, channels=768, dtype=torch.bfloat16):
    x, bias = 2 * torch.randn(rows, channels), torch.randn(channels)
    inputs = [tensor.to("cuda", dtype).requires_grad_() for tensor in (x, bias)]
    return bias_gelu, compose_gelu, inputs, [torch.randn_like(inputs[0])]


CASES = pytest.mark.parametrize("case", [norm_case, gelu_case])


def assert_same_bits(actual, expected):
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_cuda_kernels_are_in_use():
    assert _extension.has_cuda_kernels()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [8, 24, 32, 64, 160, 192, 256, 320, 384, 512])
@pytest.mark.parametrize("drop", [True, False])
def test_norm_matches_float64(channels, dtype, drop):
    op, composition, inputs, douts = norm_case(channels=channels, dtype=dtype, drop=drop)
    assert_matches(results(op, inputs, douts), composition, inputs, douts)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [8, 72, 256, 768, 2048])
def test_gelu_matches_float64(channels, dtype):
    op, composition, inputs, douts = gelu_case(channels=channels, dtype=dtype)
    assert_matches(results(op, inputs, douts), composition, inputs, douts)


@CASES
def test_float64_runs_the_composition(case):
    op, composition, inputs, douts = case(dtype=torch.float64)
    pairs = zip(results(op, inputs, douts), results(composition, inputs, douts), strict=True)
    for value, expected in pairs:
        torch.testing.assert_close(value, expected)


@CASES
def test_two_runs_give_the_same_bits(case):
    op, _, inputs, douts = case()
    assert_same_bits(results(op, inputs, douts), results(op, inputs, douts))


def test_strided_inputs_give_the_same_bits():
    op, _, inputs, douts = norm_case()
    strided = [tensor.detach().transpose(0, 1).contiguous().transpose(0, 1) for tensor in inputs[:2]]
    shifted = [torch.cat([tensor.detach()[:1], tensor.detach()])[1:] for tensor in inputs[2:4]]
    leaves = [tensor.requires_grad_() for tensor in (*strided, *shifted)]
    assert_same_bits(results(op, [*leaves, inputs[4]], douts), results(op, inputs, douts))


def test_empty_batch():
    op, _, inputs, douts = norm_case(batch=0)
    *_, dweight, dbias = results(op, inputs, douts)
    assert not dweight.any() and not dbias.any()
    op, _, inputs, douts = gelu_case(rows=0)
    assert not results(op, inputs, douts)[2].any()


@CASES
def test_runs_on_the_current_stream(case):
    op, _, inputs, douts = case()
    expected = results(op, inputs, douts)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)  # a launch on another stream would overtake this
        first = (inputs[0].detach() * 1).requires_grad_()
        result = results(op, [first, *inputs[1:]], douts)
    stream.synchronize()
    assert_same_bits(result, expected)


@CASES
def test_captures_into_a_cuda_graph(case):
    op, _, inputs, douts = case()
    expected = results(op, inputs, douts)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        results(op, inputs, douts)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = results(op, inputs, douts)
    graph.replay()
    torch.cuda.synchronize()
    assert_same_bits(result, expected)


@CASES
def test_compiles_fullgraph_with_equal_bits(case):
    op, _, inputs, douts = case()
    assert_same_bits(results(torch.compile(op, fullgraph=True), inputs, douts), results(op, inputs, douts))


def test_rejects_tensors_on_two_devices():
    x, per_channel = torch.randn(4, 16, device="cuda"), torch.randn(16)
    with pytest.raises(RuntimeError, match="bias must be on cuda:0, as x, got one on cpu; move it"):
        torch.ops.lgfast.bias_gelu_fwd(x, per_channel)
    with pytest.raises(RuntimeError, match="weight must be on cuda:0, as the map, got one on cpu; move it"):
        torch.ops.lgfast.add_layer_norm_fwd(x, x, per_channel, per_channel, None, EPS)
