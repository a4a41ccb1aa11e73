"""The CUDA kernels of add_layer_norm and bias_gelu in the host emulation, under AddressSanitizer, against float64.

Every case runs under several schedules of its threads, which must give the same bits; outputs begin as NaN.
"""

import struct

import pytest
import torch

from tests.emulation.build import build
from tests.emulation.driver import raw, run_driver
from tests.ops.fused_layers_cases import EPS, assert_matches, compose_gelu, compose_norm, norm_inputs

pytestmark = pytest.mark.slow

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def driver():
    return build("fused_layers_driver", ["tests/emulation/fused_layers_driver.cpp"])


@pytest.fixture
def run(driver, tmp_path):
    """Run the kernels on (header, inputs), and return the results as tensors of the given shapes and dtypes."""

    def call(header, inputs, shapes, seeds=5):
        head = struct.pack("8qd", *header, seeds, EPS)
        return run_driver(driver, tmp_path, [head, *(raw(x) for x in inputs if x is not None)], shapes)[0]

    return call


def run_norm(run, inputs, dout, dy, **options):
    x, drop_scale = inputs[0], inputs[4]
    batch, tokens, channels = x.shape
    dtype, has_scale = x.dtype, drop_scale is not None
    header = (0, DTYPES.index(dtype), batch * tokens, tokens, channels, has_scale, dy is not None)
    shapes = [(x.shape, dtype)] * 2 + [((batch, tokens), torch.float32)] * 2
    shapes += [(x.shape, dtype)] * (1 + has_scale) + [((2, channels), dtype)]
    y, out, mean, rstd, *grads, dparams = run(header, [*inputs, dout, dy], shapes, **options)
    torch.testing.assert_close(mean, y.double().mean(-1), rtol=1e-5, atol=1e-5, check_dtype=False)
    centred = y.double() - y.double().mean(-1, keepdim=True)
    rstd_of_y = (centred.square().mean(-1) + EPS).rsqrt()
    torch.testing.assert_close(rstd, rstd_of_y, rtol=1e-5, atol=0, check_dtype=False)
    dx, dresidual = grads if has_scale else (*grads, *grads)
    return [y, out, dx, dresidual, *dparams]


# One row a warp and many; one and two units a lane; idle lanes (24, 192, 328); fewer rows than a block takes.
@pytest.mark.parametrize("channels", [8, 24, 32, 64, 192, 256, 328, 512])
@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_matches_float64(run, dtype, channels):
    inputs = norm_inputs(3, 7, channels, dtype)
    dout, dy = torch.randn(2, 3, 7, channels).to(dtype)
    assert_matches(run_norm(run, inputs, dout, dy), compose_norm, inputs, [dy, dout])


@pytest.mark.parametrize(("drop", "has_dy"), [(False, True), (True, False), (False, False)])
def test_norm_without_drop_scale_or_second_gradient(run, drop, has_dy):
    inputs = norm_inputs(2, 17, 64, torch.bfloat16, drop=drop)
    dout, dy = torch.randn(2, 2, 17, 64).bfloat16()
    dy = dy if has_dy else None
    assert_matches(run_norm(run, inputs, dout, dy), compose_norm, inputs, [dy, dout])


def test_norm_blocks_walk_over_several_rows(run):
    inputs = norm_inputs(5, 850, 192, torch.bfloat16)  # more rows than 512 blocks of 8 rows take at once
    dout, dy = torch.randn(2, 5, 850, 192).bfloat16()
    assert_matches(run_norm(run, inputs, dout, dy, seeds=2), compose_norm, inputs, [dy, dout])


def test_norm_of_no_rows(run):
    inputs = norm_inputs(0, 1, 32, drop=False)
    *maps, dweight, dbias = run_norm(run, inputs, *torch.randn(2, 0, 1, 32))
    assert not any(tensor.numel() for tensor in maps)
    assert not dweight.any() and not dbias.any()


def gelu_inputs(rows, channels, dtype):
    x, bias = 2 * torch.randn(rows, channels), torch.randn(channels)
    x[: rows // 2] *= 4  # into both tails
    return [tensor.to(dtype).requires_grad_() for tensor in (x, bias)]


def run_gelu(run, inputs, dout, **options):
    x, bias = inputs
    header = (1, DTYPES.index(x.dtype), len(x), 1, x.shape[1], False, False)
    return run(header, [x, bias, dout], [(x.shape, x.dtype)] * 2 + [(bias.shape, x.dtype)], **options)


# A part of one block of columns, a whole block, several blocks of which the last is partly idle.
@pytest.mark.parametrize("channels", [8, 72, 256, 776])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gelu_matches_float64(run, dtype, channels):
    inputs, dout = gelu_inputs(21, channels, dtype), torch.randn(21, channels).to(dtype)
    assert_matches(run_gelu(run, inputs, dout), compose_gelu, inputs, [dout])


def test_gelu_blocks_walk_over_several_rows(run):
    inputs, dout = gelu_inputs(3000, 768, torch.bfloat16), torch.randn(3000, 768).bfloat16()
    assert_matches(run_gelu(run, inputs, dout, seeds=2), compose_gelu, inputs, [dout])


def test_gelu_of_no_rows(run):
    out, dx, dbias = run_gelu(run, gelu_inputs(0, 16, torch.float32), torch.empty(0, 16))
    assert not out.numel() and not dx.numel() and not dbias.any()
