"""short_attention's kernels on a GPU: the emulation's matrix, and what only a GPU shows."""

import pytest
import torch

from lgfast.ops import short_attention, short_attention_qkvpacked, unsupported_reason
from tests.helpers import assert_as_exact_as_plain

pytestmark = pytest.mark.gpu

LENGTHS = [1, 7, 16, 17, 49, 64, 65, 196, 197, 208, 256, 730, 1024]
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])


def make_qkv(n, m, dim, dtype=torch.bfloat16, batch=2, heads=3):
    shapes = [(batch, length, heads, dim) for length in (n, m, m)]
    return [torch.randn(shape, device="cuda").to(dtype).requires_grad_() for shape in shapes]


def attention(q, k, v, dout, scale):
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    scores = torch.einsum("bnhd,bmhd->bhnm", leaves[0], leaves[1]) * scale
    out = torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), leaves[2])
    return [out.detach(), *torch.autograd.grad(out, leaves, dout)]


def check(got, q, k, v, dout, scale):
    exact = attention(*(x.double() for x in (q, k, v, dout)), scale)
    plain = attention(q, k, v, dout, scale)
    for name, value, plain_value, exact_value in zip(("out", "dq", "dk", "dv"), got, plain, exact, strict=True):
        assert_as_exact_as_plain(value.detach(), plain_value, exact_value, name)


def run(q, k, v, scale=None):
    assert unsupported_reason(q, k, v, scale) is None
    out = short_attention(q, k, v, scale)
    dout = torch.randn_like(out)
    return [out, *torch.autograd.grad(out, (q, k, v), dout)], dout


@DTYPES
@pytest.mark.parametrize("dim", [32, 48, 64])
@pytest.mark.parametrize("n", LENGTHS)
def test_matches_float64(n, dim, dtype):
    q, k, v = make_qkv(n, n, dim, dtype)
    got, dout = run(q, k, v)
    check(got, q, k, v, dout, dim**-0.5)


@DTYPES
@pytest.mark.parametrize("n, m, dim", [(196, 49, 32), (3136, 49, 32), (784, 49, 64), (17, 1, 48), (65, 197, 64)])
def test_keys_and_queries_differ_in_number(n, m, dim, dtype):
    q, k, v = make_qkv(n, m, dim, dtype)
    got, dout = run(q, k, v)
    check(got, q, k, v, dout, dim**-0.5)


@DTYPES
@pytest.mark.parametrize("dim", [32, 48, 64])
@pytest.mark.parametrize("n", [17, 197, 730])
def test_packed_equals_unpacked_and_sums_the_bias_gradient(n, dim, dtype):
    q, k, v = make_qkv(n, n, dim, dtype)
    qkv = torch.stack((q, k, v), 2).detach().requires_grad_()
    bias = torch.zeros(3 * 3 * dim, device="cuda", requires_grad=True)
    out = short_attention_qkvpacked(qkv, added_bias=bias)
    dout = torch.randn_like(out)
    dqkv, dbias = torch.autograd.grad(out, (qkv, bias), dout)
    unpacked = short_attention(q, k, v)
    grads = torch.autograd.grad(unpacked, (q, k, v), dout.view_as(unpacked))
    assert torch.equal(out, unpacked.flatten(2))
    assert all(torch.equal(got, want) for got, want in zip(dqkv.unbind(2), grads, strict=True))
    floor = 2**-7 * dqkv.float().abs().sum((0, 1)).max().item()  # dqkv is rounded, the kernel's sums are not
    torch.testing.assert_close(dbias, dqkv.float().sum((0, 1)).flatten(), rtol=0, atol=floor)


@pytest.mark.parametrize("n, m, dim", [(197, 197, 64), (730, 730, 32), (3136, 49, 32)])
def test_two_runs_agree_bit_for_bit(n, m, dim):
    q, k, v = make_qkv(n, m, dim)
    out = short_attention(q, k, v)
    dout = torch.randn_like(out)
    first = [out, *torch.autograd.grad(out, (q, k, v), dout)]
    out = short_attention(q, k, v)
    assert all(torch.equal(a, b) for a, b in zip(first, [out, *torch.autograd.grad(out, (q, k, v), dout)], strict=True))


def test_strided_unaligned_and_expanded_inputs():
    q, k, v = make_qkv(33, 49, 32)
    expected, dout = run(q, k, v)
    head_major = q.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    shifted = torch.empty(k.numel() + 1, device="cuda", dtype=k.dtype)[1:].view(k.shape).copy_(k.detach())
    shifted.requires_grad_()
    out = short_attention(head_major, shifted, v)
    grads = torch.autograd.grad(out, (head_major, shifted, v), dout)
    assert all(torch.equal(a, b) for a, b in zip([out, *grads], expected, strict=True))
    out = short_attention(q, k, v)
    ones = torch.autograd.grad(out.sum(), (q, k, v), retain_graph=True)
    assert all(
        torch.equal(a, b) for a, b in zip(ones, torch.autograd.grad(out, (q, k, v), torch.ones_like(out)), strict=True)
    )


def test_side_stream_gives_the_same():
    q, k, v = make_qkv(197, 197, 64)
    expected = short_attention(q, k, v)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        out = short_attention(q, k, v)
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(out, expected)


def test_captures_in_a_cuda_graph():
    q, k, v = make_qkv(197, 197, 64)

    def step():
        out = short_attention(q, k, v)
        return [out, *torch.autograd.grad(out, (q, k, v), torch.ones_like(out))]

    expected = step()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


def test_compiles_fullgraph():
    q, k, v = make_qkv(197, 197, 64)
    assert torch.equal(torch.compile(short_attention, fullgraph=True)(q, k, v), short_attention(q, k, v))


def test_opcheck():
    q, k, v = make_qkv(17, 9, 32)
    torch.library.opcheck(torch.ops.lgfast.short_attention_fwd, (q, k, v, 0.2))
    qkv = torch.randn(2, 17, 3, 2, 32, device="cuda").bfloat16().requires_grad_()
    torch.library.opcheck(torch.ops.lgfast.short_attention_qkvpacked_fwd, (qkv, None, 0.2))


def test_empty_batch():
    q, k, v = make_qkv(17, 17, 32, batch=0)
    out = short_attention(q, k, v)
    out.sum().backward()
    assert out.shape == q.shape and q.grad.shape == q.shape


def test_native_op_refuses_what_it_cannot_serve():
    q, k, v = (x.detach() for x in make_qkv(17, 17, 40))
    with pytest.raises(RuntimeError, match="lgfast::short_attention: head dim must be 32, 48 or 64, got 40"):
        torch.ops.lgfast.short_attention_fwd(q, k, v, 0.2)
