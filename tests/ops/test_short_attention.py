"""short_attention: the public functions, and the registration of the ops with their reference as CPU kernel."""

import functools
import importlib
import warnings
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from lgfast import _extension
from lgfast.ops import once, reference, short_attention, short_attention_qkvpacked, short_attention_unsupported_reason
from tests.attention_truth import check
from tests.cpu_levels import FLOAT_LEVELS, held_to
from tests.rounding import assert_rounded, truth
from tests.stand_in_gpus import use_architectures, use_gpus

module = importlib.import_module("lgfast.ops.short_attention")
needs_native = pytest.mark.skipif(not _extension.has_native(), reason="needs lgfast._C")
ops = torch.ops.lgfast


def make_qkv(n=17, m=17, dim=32, dtype=torch.bfloat16, batch=2, heads=2, requires_grad=True):
    shapes = [(batch, length, heads, dim) for length in (n, m, m)]
    return [torch.randn(shape).to(dtype).requires_grad_(requires_grad) for shape in shapes]


def sdpa(q, k, v, scale=None):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)


@pytest.fixture
def kernels_on_cpu(monkeypatch):
    """The public functions take the ops' path on CPU, where without native code the reference is the kernel."""
    monkeypatch.setattr(module, "_unavailable_reason", lambda device: None)


def test_in_float64_equals_scaled_dot_product_attention_to_the_bit():
    q, k, v = make_qkv(m=9, dtype=torch.float64)
    out, expected = short_attention(q, k, v), sdpa(q, k, v)
    assert torch.equal(out, expected)
    dout = torch.randn_like(out)
    for got, want in zip(
        torch.autograd.grad(out, (q, k, v), dout), torch.autograd.grad(expected, (q, k, v), dout), strict=True
    ):
        assert torch.equal(got, want)


def test_packed_equals_unpacked_and_gives_the_bias_its_gradient():
    weight, x, dout = torch.randn(3 * 64, 64) / 8, torch.randn(2, 17, 64), torch.randn(2, 17, 64)
    bias = torch.randn(3 * 64, requires_grad=True)

    def composed():
        qkv = F.linear(x.double(), weight.double(), bias.double()).view(2, 17, 3, 2, 32)
        out = sdpa(*qkv.unbind(2)).flatten(2)
        return out.detach(), torch.autograd.grad(out, bias, dout.double())[0]

    detached = F.linear(x, weight, bias.detach()).view(2, 17, 3, 2, 32)
    out = short_attention_qkvpacked(detached, added_bias=bias)
    results = out.detach(), torch.autograd.grad(out, bias, dout)[0]
    for got, expected in zip(results, truth(composed, torch.float32), strict=True):
        assert_rounded(got, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "n, m, dim", [(1, 1, 8), (1, 5, 32), (65, 65, 32), (7, 9, 20), (196, 49, 48), (197, 197, 64), (700, 300, 32)]
)
def test_the_op_matches_float64(n, m, dim, dtype):
    """Every head dim; the last shape is several blocks of queries."""
    q, k, v = make_qkv(n, m, dim, dtype)
    out = ops.short_attention_fwd(q, k, v, 0.2)[0]
    dout = torch.randn_like(out)
    grads = torch.autograd.grad(out, (q, k, v), dout)
    check(dict(zip(("out", "dq", "dk", "dv"), (out, *grads), strict=True)), q, k, v, dout, 0.2)


def test_large_scores_neither_overflow_nor_underflow():
    q, k, v = (x.detach() * 40 for x in make_qkv(33, 33, dtype=torch.float32))
    out, lse = ops.short_attention_fwd(q, k, v, 1.0)
    scores = torch.einsum("bnhd,bmhd->bhnm", q.double(), k.double())
    assert scores.max() > 5000
    torch.testing.assert_close(lse.double(), scores.logsumexp(-1), rtol=1e-5, atol=0)
    exact = torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v.double())
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=0.05 * v.abs().max().item())
    assert out.isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_hidden(bad):
    q, k, v = (x.detach().abs() for x in make_qkv(dtype=torch.float32))
    k[0, 3, 0, 5] = bad
    out, lse = ops.short_attention_fwd(q, k, v, 0.2)
    assert out[0, :, 0].isnan().all() and not lse[0, 0].isfinite().any()
    assert out[1].isfinite().all() and out[:, :, 1].isfinite().all()


def test_neither_threads_nor_batch_change_a_bit():
    qkv = torch.randn(6, 65, 3, 3, 32)
    results = []
    threads = torch.get_num_threads()
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        out, lse = ops.short_attention_qkvpacked_fwd(qkv, None, 0.2)
        results.append([out, lse, *ops.short_attention_qkvpacked_bwd(out, qkv, out, lse, 0.2, True)])
    torch.set_num_threads(threads)
    out, lse = ops.short_attention_qkvpacked_fwd(qkv[2:3], None, 0.2)
    alone = [out, lse, *ops.short_attention_qkvpacked_bwd(out, qkv[2:3], out, lse, 0.2, True)]
    for first, second, third, own in zip(*results, alone, strict=True):
        assert torch.equal(first, second) and torch.equal(first, third) and torch.equal(first[2:3], own)


@pytest.fixture
def float_products():
    """The CPU kernel multiplies bfloat16 as the reference does, and rounds nothing on the way."""
    with held_to(FLOAT_LEVELS[-1]) if FLOAT_LEVELS else nullcontext():
        yield


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reference_and_op_agree(float_products, dtype):
    q, k, v = make_qkv(17, 9, 48, dtype, requires_grad=False)
    dout = torch.randn_like(q)
    out, lse = ops.short_attention_fwd(q, k, v, 0.2)
    expected, expected_lse = reference.short_attention(q, k, v, 0.2)
    grads = ops.short_attention_bwd(dout, q, k, v, out, lse, 0.2)
    expected_grads = reference.short_attention_grads(dout, q, k, v, out, lse, 0.2)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(lse, expected_lse)
    for got, want in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(got, want.to(dtype))


@pytest.mark.parametrize("dim", [32, 48, 64])
@pytest.mark.parametrize("n, m", [(17, 17), (196, 49), (1, 5)])
def test_public_function_matches_float64(kernels_on_cpu, n, m, dim):
    q, k, v = make_qkv(n, m, dim)
    out = short_attention(q, k, v, 0.2)
    dout = torch.randn_like(out)
    grads = torch.autograd.grad(out, (q, k, v), dout)
    check(dict(zip(("out", "dq", "dk", "dv"), (out, *grads), strict=True)), q, k, v, dout, 0.2)


def test_packed_matches_unpacked_in_bfloat16(kernels_on_cpu):
    qkv = torch.randn(2, 17, 3, 2, 32, dtype=torch.bfloat16, requires_grad=True)
    bias = torch.zeros(3 * 64, requires_grad=True)
    out = short_attention_qkvpacked(qkv, added_bias=bias)
    dout = torch.randn_like(out)
    dqkv, dbias = torch.autograd.grad(out, (qkv, bias), dout)
    expected = short_attention(*qkv.unbind(2)).flatten(2)
    assert torch.equal(out, expected)
    assert torch.equal(dqkv, torch.autograd.grad(expected, qkv, dout)[0])
    assert dbias.dtype == torch.float32
    torch.testing.assert_close(dbias, dqkv.float().sum((0, 1)).flatten(), rtol=2**-7, atol=2**-5)


def test_opcheck():
    q, k, v = make_qkv(7, 5)
    out, lse = ops.short_attention_fwd(q, k, v, 0.2)
    torch.library.opcheck(ops.short_attention_fwd, (q, k, v, 0.2))
    torch.library.opcheck(
        ops.short_attention_bwd, (out.detach(), *(x.detach() for x in (q, k, v)), out.detach(), lse, 0.2)
    )
    qkv = torch.randn(2, 7, 3, 2, 32, requires_grad=True)
    bias = torch.randn(192, requires_grad=True)
    out, lse = ops.short_attention_qkvpacked_fwd(qkv, None, 0.2)
    torch.library.opcheck(ops.short_attention_qkvpacked_fwd, (qkv, bias, 0.2))
    torch.library.opcheck(ops.short_attention_qkvpacked_fwd, (qkv, None, 0.2))
    for needs_dbias in (True, False):
        torch.library.opcheck(
            ops.short_attention_qkvpacked_bwd, (out.detach(), qkv.detach(), out.detach(), lse, 0.2, needs_dbias)
        )


def test_gradcheck_in_float64():
    q, k, v = make_qkv(4, 3, 3, torch.float64, batch=1)
    assert torch.autograd.gradcheck(lambda *x: ops.short_attention_fwd(*x, 0.5)[0], (q, k, v))
    qkv = torch.randn(1, 4, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ops.short_attention_qkvpacked_fwd(x, None, 0.5)[0], qkv)


@pytest.mark.parametrize("packed", [False, True])
def test_compiles_fullgraph(kernels_on_cpu, packed):
    q, k, v = make_qkv()
    if packed:
        args, op = [torch.stack((q, k, v), 2).detach().requires_grad_()], short_attention_qkvpacked
    else:
        args, op = [q, k, v], short_attention
    expected = op(*args)
    out = torch.compile(op, fullgraph=True, backend="aot_eager")(*args)
    assert torch.equal(out, expected)
    dout = torch.randn_like(out)
    for got, want in zip(torch.autograd.grad(out, args, dout), torch.autograd.grad(expected, args, dout), strict=True):
        assert torch.equal(got, want)


def test_fallback_compiles_fullgraph():
    q, k, v = make_qkv(dtype=torch.float64)
    out = torch.compile(short_attention, fullgraph=True, backend="aot_eager")(q, k, v)
    torch.testing.assert_close(out, short_attention(q, k, v))


def test_autocast_casts_to_its_dtype(kernels_on_cpu):
    q, k, v = make_qkv(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = short_attention(q, k, v)
    assert torch.equal(out, short_attention(q.bfloat16(), k.bfloat16(), v.bfloat16()))
    out.float().sum().backward()
    assert q.grad.dtype == torch.float32 and q.grad.abs().sum() > 0


@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, None, 1), (2, 0, None)])
def test_vmap_equals_a_loop(kernels_on_cpu, in_dims):
    tensors = [torch.randn((2, 3, 17, 2, 32)[1:] if dim is None else (2, 3, 17, 2, 32)).bfloat16() for dim in in_dims]
    expected = torch.stack(
        [short_attention(*(x if d is None else x[i] for x, d in zip(tensors, in_dims, strict=True))) for i in range(2)]
    )
    moved = [x if d is None else x.movedim(0, d) for x, d in zip(tensors, in_dims, strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PyTorch warns when it falls back to a loop
        out = torch.vmap(short_attention, in_dims=in_dims)(*moved)
    assert torch.equal(out, expected)


def test_vmap_of_packed_equals_a_loop(kernels_on_cpu):
    qkv = torch.randn(3, 2, 17, 3, 2, 32).bfloat16()
    assert torch.equal(torch.vmap(short_attention_qkvpacked)(qkv), torch.stack([*map(short_attention_qkvpacked, qkv)]))


def test_expanded_and_strided_gradients(kernels_on_cpu):
    q, k, v = make_qkv()
    out = short_attention(q, k, v)
    for dout in (torch.ones((), dtype=out.dtype).expand_as(out), torch.randn_like(out.transpose(1, 2)).transpose(1, 2)):
        grads = torch.autograd.grad(out, (q, k, v), dout, retain_graph=True)
        expected = torch.autograd.grad(out, (q, k, v), dout.clone(memory_format=torch.contiguous_format), True)
        assert all(torch.equal(got, want) for got, want in zip(grads, expected, strict=True))


@pytest.mark.parametrize("path", ["kernels_on_cpu", None])
def test_empty_batch(path, request):
    if path:
        request.getfixturevalue(path)
    q, k, v = make_qkv(batch=0)
    out = short_attention(q, k, v)
    assert out.shape == q.shape
    out.sum().backward()
    assert q.grad.shape == q.shape
    qkv, bias = torch.randn(0, 17, 3, 2, 32).bfloat16().requires_grad_(), torch.ones(192, requires_grad=True)
    short_attention_qkvpacked(qkv, added_bias=bias).sum().backward()
    assert qkv.grad.shape == qkv.shape and not bias.grad.any()


@pytest.mark.parametrize("path", ["kernels_on_cpu", None])
def test_tensors_without_data_give_the_shape(path, request):
    if path:
        request.getfixturevalue(path)
    q, k, v = (x.detach().to("meta") for x in make_qkv(17, 9))
    assert short_attention(q, k, v).shape == q.shape and short_attention(q, k, v).is_meta
    assert short_attention_qkvpacked(torch.empty(2, 17, 3, 2, 32, device="meta")).shape == (2, 17, 64)


def test_second_derivative_is_refused(kernels_on_cpu):
    q, k, v = make_qkv()
    with pytest.raises(RuntimeError, match="short_attention has no second derivative"):
        torch.autograd.grad(short_attention(q, k, v).sum(), q, create_graph=True)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"dtype": torch.float64}, "dtype must be bfloat16 or float16, or float32 on CPU, got torch.float64"),
        ({"dim": 40}, "head dim must be 32, 48 or 64, got 40"),
        ({"m": 1025}, "at most 1024 keys, got 1025"),
        ({"n": 1025, "m": 65}, "at most 1024 queries for 65 keys, got 1025"),
        ({"n": 4097, "m": 64}, "at most 4096 queries for 64 keys, got 4097"),
        ({"n": 0}, "there must be queries and keys, got 0 and 17"),
    ],
)
def test_unsupported_reason_says_why(change, words):
    assert short_attention_unsupported_reason(*make_qkv(**change)) == words


@pytest.mark.parametrize(
    "capability, words",
    [
        ((7, 5), "the GPU must be of compute capability 8.0 or later"),
        ((8, 0), None),
        ((8, 9), None),
        ((9, 0), None),
        ((12, 0), None),
    ],
)
def test_unsupported_reason_knows_the_gpu(capability, words, monkeypatch):
    use_gpu(monkeypatch, *capability)
    assert module.unsupported_shape_reason(torch.device("cuda"), torch.bfloat16, 197, 197, 64) == words


def use_gpu(monkeypatch, major=9, minor=0, smem_kb=99):
    use_gpus(monkeypatch, [(major, minor)], smem_kb)
    use_architectures(monkeypatch, "80-virtual")


@needs_native
def test_unsupported_reason_asks_the_plan_of_the_kernels(monkeypatch):
    use_gpu(monkeypatch, smem_kb=48)
    words = "197 queries and 197 keys need 57 KB of shared memory a block, of which the GPU gives 48"
    assert module.unsupported_shape_reason(torch.device("cuda"), torch.bfloat16, 197, 197, 64) == words
    assert module.unsupported_shape_reason(torch.device("cuda"), torch.bfloat16, 197, 197, 32) is None


@needs_native
def test_the_question_of_shared_memory_is_compiled_for_any_length(monkeypatch, counted_compiles):
    use_gpu(monkeypatch)

    def has_kernel(x):
        reason = module.unsupported_shape_reason(torch.device("cuda"), torch.bfloat16, x.shape[0], x.shape[1], 64)
        return x + (reason is None)

    compiled = torch.compile(has_kernel, fullgraph=True, dynamic=True)
    for n, m in ((197, 196), (65, 100), (33, 300)):
        assert torch.equal(compiled(torch.zeros(n, m)), torch.ones(n, m))
    assert counted_compiles.frame_count == 1
    assert torch.equal(compiled(torch.zeros(1025, 300)), torch.zeros(1025, 300))


@needs_native
@pytest.mark.parametrize(
    "n, m, dim", [(17, 17, 32), (17, 17, 40), (17, 1025, 32), (1025, 65, 32), (4097, 64, 32), (0, 3, 32), (3, 0, 32)]
)
def test_the_kernels_refuse_in_the_words_of_unsupported_reason(n, m, dim, monkeypatch):
    use_gpu(monkeypatch)
    reason = module.unsupported_shape_reason(torch.device("cuda"), torch.bfloat16, n, m, dim)
    assert module.lack_of_smem(99 << 10, n, m, dim) == reason


def test_float32_is_for_the_cpu(kernels_on_cpu):
    limits = (17, 17, 32)
    assert module.unsupported_shape_reason(torch.device("cpu"), torch.float32, *limits) is None
    on_cuda = module.unsupported_shape_reason(torch.device("cuda"), torch.float32, *limits)
    assert on_cuda == "dtype must be bfloat16 or float16, got torch.float32"


def test_the_cpu_kernels_must_be_built(monkeypatch):
    monkeypatch.setattr(_extension, "has_native", lambda: False)
    assert short_attention_unsupported_reason(*make_qkv()) == "lgfast was built without its CPU kernels"
    meta = [x.to("meta") for x in make_qkv()]
    assert short_attention_unsupported_reason(*meta) == "the kernels run on CUDA and CPU, got tensors on meta"


def test_scale_that_is_not_positive_is_left_to_pytorch(kernels_on_cpu):
    q, k, v = make_qkv()
    assert short_attention_unsupported_reason(q, k, v) is None
    assert short_attention_unsupported_reason(q, k, v, -1.0) == "softmax_scale must be positive, got -1.0"
    assert torch.equal(short_attention(q, k, v, -1.0), sdpa(q, k, v, -1.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # by the kernels, and by SDPA
@pytest.mark.parametrize("m", [17, 9])
def test_the_layout_of_sdpa(m, dtype):
    """The same values and gradients in either order, equal to SDPA's in its own."""
    q, k, v = make_qkv(m=m, heads=3, dtype=dtype)
    swapped = [x.detach().transpose(1, 2).contiguous().requires_grad_() for x in (q, k, v)]
    out, swapped_out = short_attention(q, k, v, layout="bnhd"), short_attention(*swapped, layout="bhnd")
    assert swapped_out.shape == (2, 3, 17, 32)
    assert torch.equal(swapped_out.transpose(1, 2), out) and torch.equal(out, short_attention(q, k, v))
    torch.testing.assert_close(swapped_out, F.scaled_dot_product_attention(*swapped), rtol=1e-4, atol=1e-5)
    dout = torch.randn_like(out)
    grads = torch.autograd.grad(out, (q, k, v), dout)
    swapped_grads = torch.autograd.grad(swapped_out, swapped, dout.transpose(1, 2))
    assert all(torch.equal(a.transpose(1, 2), b) for a, b in zip(grads, swapped_grads, strict=True))


def test_what_looks_swapped_is_said_once(monkeypatch):
    monkeypatch.setattr(once, "_warn", functools.cache(once._warn.__wrapped__))
    q, k, v = (x.transpose(1, 2) for x in make_qkv())  # 17 heads of 2 tokens
    with pytest.warns(
        UserWarning, match=r'got q \[2, 2, 17, 32\] with more heads than tokens; pass layout="bhnd"'
    ) as seen:
        short_attention(q, k, v)
    assert seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        short_attention(q, k, v)  # it was said
        once._warn.cache_clear()
        short_attention(q, k, v, layout="bnhd")  # the caller knows
        short_attention(q, k, v, layout="bhnd")
        short_attention(q[:, :1], *make_qkv(heads=17)[1:])  # one query over many keys
        short_attention(*make_qkv())


def test_rejects_what_does_not_fit_together():
    with pytest.raises(ValueError, match=r"layout must be .*, got 'nhd'"):
        short_attention(*make_qkv(), layout="nhd")
    with pytest.raises(ValueError, match=r'q must be \[B, H, N, D\] .*; layout="bnhd" takes the other order'):
        short_attention(*make_qkv(m=9), layout="bhnd")
    q, k, v = make_qkv()
    with pytest.raises(
        ValueError, match=r"q must be \[B, N, H, D\].*got \[2, 17, 2, 32\], \[2, 17, 2, 32\] and \[2, 16"
    ):
        short_attention(q, k, v[:, 1:])
    with pytest.raises(ValueError, match=r"one dtype expected, got q torch\.bfloat16, k torch\.float32"):
        short_attention(q, k.float(), v.float())
    with pytest.raises(ValueError, match="one device expected"):
        short_attention(q, k.to("meta"), v.to("meta"))
    with pytest.raises(ValueError, match=r"short_attention: q must be float32, .*, got torch\.int32; cast it"):
        short_attention(q.int(), k.int(), v.int())
    with pytest.raises(ValueError, match=r"qkvpacked: qkv must be float32, .*, got torch\.int64"):
        short_attention_qkvpacked(torch.ones(2, 17, 3, 2, 32, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"qkv must be \[B, N, 3, H, D\]"):
        short_attention_qkvpacked(q)
    with pytest.raises(ValueError, match=r"added_bias must be \[3 \* H \* D\] = \[192\] on cpu, got \[64\] on cpu"):
        short_attention_qkvpacked(torch.stack((q, k, v), 2), added_bias=torch.zeros(64))
    with pytest.raises(ValueError, match=r"on cpu, got \[192\] on meta"):
        short_attention_qkvpacked(torch.stack((q, k, v), 2), added_bias=torch.zeros(192, device="meta"))
