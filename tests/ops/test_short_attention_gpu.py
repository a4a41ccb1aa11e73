"""short_attention's kernels on a GPU: the emulation's matrix, and what only a GPU shows."""

import pytest
import torch

from lgfast.ops import short_attention, short_attention_qkvpacked, short_attention_unsupported_reason
from tests.attention_truth import (
    DTYPES,
    HEAD_DIMS,
    LENGTHS,
    ROW_CAPACITY_EDGES,
    UNEQUAL,
    check,
    check_bias_gradient,
)

pytestmark = pytest.mark.gpu


def make_qkv(n, m, dim, dtype=torch.bfloat16, batch=2, heads=3):
    shapes = [(batch, length, heads, dim) for length in (n, m, m)]
    return [torch.randn(shape, device="cuda").to(dtype).requires_grad_() for shape in shapes]


def gradients(out, dout, *leaves):
    return [out, *torch.autograd.grad(out, leaves, dout)]


def run(q, k, v, scale=None):
    assert short_attention_unsupported_reason(q, k, v, scale) is None
    out = short_attention(q, k, v, scale)
    dout = torch.randn_like(out)
    return gradients(out, dout, q, k, v), dout


def check_case(n, m, dim, dtype):
    q, k, v = make_qkv(n, m, dim, DTYPES[dtype])
    got, dout = run(q, k, v)
    check(dict(zip(("out", "dq", "dk", "dv"), got, strict=True)), q, k, v, dout, dim**-0.5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", HEAD_DIMS)
@pytest.mark.parametrize("n", [*LENGTHS, 1024])
def test_matches_float64(n, dim, dtype):
    check_case(n, n, dim, dtype)


@pytest.mark.parametrize("dim", HEAD_DIMS)
@pytest.mark.parametrize("m", ROW_CAPACITY_EDGES)
def test_every_number_of_key_tiles_matches_float64(m, dim):
    check_case(20, m, dim, "bf16")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", HEAD_DIMS)
@pytest.mark.parametrize("n, m", [*UNEQUAL, (784, 49), (3136, 49)])
def test_keys_and_queries_differ_in_number(n, m, dim, dtype):
    check_case(n, m, dim, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", HEAD_DIMS)
@pytest.mark.parametrize("n", [17, 197, 730])
def test_packed_equals_unpacked_and_sums_the_bias_gradient(n, dim, dtype):
    q, k, v = make_qkv(n, n, dim, DTYPES[dtype])
    qkv = torch.stack((q, k, v), 2).detach().requires_grad_()
    bias = torch.zeros(3 * 3 * dim, device="cuda", requires_grad=True)
    out = short_attention_qkvpacked(qkv, added_bias=bias)
    dout = torch.randn_like(out)
    dqkv, dbias = torch.autograd.grad(out, (qkv, bias), dout)
    unpacked = short_attention(q, k, v)
    expected = gradients(unpacked, dout.view_as(unpacked), q, k, v)
    assert torch.equal(out, expected[0].flatten(2))
    assert all(torch.equal(got, want) for got, want in zip(dqkv.unbind(2), expected[1:], strict=True))
    check_bias_gradient(dbias.view(1, 3, 3, dim), [x.flatten(0, 1)[None] for x in expected[1:]])


@pytest.mark.parametrize("n, m, dim", [(197, 197, 64), (256, 256, 64), (730, 730, 32), (3136, 49, 32)])
def test_two_runs_agree_bit_for_bit(n, m, dim):
    q, k, v = make_qkv(n, m, dim)
    dout = torch.randn_like(q)
    first, second = (gradients(short_attention(q, k, v), dout, q, k, v) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_strided_unaligned_and_expanded_inputs():
    q, k, v = make_qkv(33, 49, 32)
    expected, dout = run(q, k, v)
    head_major = q.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    shifted = torch.empty(k.numel() + 1, device="cuda", dtype=k.dtype)[1:].view(k.shape).copy_(k.detach())
    shifted.requires_grad_()
    out = short_attention(head_major, shifted, v)
    grads = torch.autograd.grad(out, (head_major, shifted, v), dout)
    assert all(torch.equal(a, b) for a, b in zip([out, *grads], expected, strict=True))
    ones = gradients(short_attention(q, k, v), torch.ones((), device="cuda", dtype=q.dtype).expand_as(q), q, k, v)
    dense = gradients(short_attention(q, k, v), torch.ones_like(q), q, k, v)
    assert all(torch.equal(a, b) for a, b in zip(ones, dense, strict=True))


def test_packed_input_off_a_16_byte_boundary():
    qkv = torch.stack(make_qkv(33, 33, 32), 2).detach()
    shifted = torch.empty(qkv.numel() + 1, device="cuda", dtype=qkv.dtype)[1:].view(qkv.shape).copy_(qkv)
    leaves = [qkv.requires_grad_(), shifted.requires_grad_()]
    first, second = (gradients(out, torch.ones_like(out), x) for x in leaves for out in [short_attention_qkvpacked(x)])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_side_stream_gives_the_same():
    q, k, v = make_qkv(197, 197, 64)
    expected, dout = run(q, k, v)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        got = gradients(short_attention(q, k, v), dout, q, k, v)
    torch.cuda.current_stream().wait_stream(stream)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("packed", [False, True])
def test_captures_in_a_cuda_graph_and_replays_on_new_values(packed):
    q, k, v = make_qkv(197, 197, 64)
    leaves = (torch.stack((q, k, v), 2).detach().requires_grad_(),) if packed else (q, k, v)
    op = short_attention_qkvpacked if packed else short_attention

    def step():
        out = op(*leaves)
        return gradients(out, torch.ones_like(out), *leaves)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for leaf in leaves:
            leaf.normal_()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, step(), strict=True))


def test_compiles_fullgraph():
    q, k, v = make_qkv(197, 197, 64)
    expected, dout = run(q, k, v)
    got = gradients(torch.compile(short_attention, fullgraph=True)(q, k, v), dout, q, k, v)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


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


@pytest.mark.parametrize("n, m, dim", [(17, 17, 40), (17, 1025, 32), (1025, 65, 32), (4097, 64, 32), (0, 3, 32)])
def test_native_op_refuses_in_the_words_of_unsupported_reason(n, m, dim):
    q, k, v = (x.detach() for x in make_qkv(n, m, dim))
    with pytest.raises(RuntimeError, match=f"lgfast::short_attention: {short_attention_unsupported_reason(q, k, v)}"):
        torch.ops.lgfast.short_attention_fwd(q, k, v, 0.2)
