"""short_attention's CPU kernel in bfloat16: both ways in which it multiplies are held to float64."""

import pytest
import torch

from lgfast import _extension
from tests.attention_truth import check, check_bias_gradient
from tests.cpu_levels import FLOAT_LEVELS, LEVELS, held_to

pytestmark = pytest.mark.skipif(not _extension.has_native(), reason="lgfast._C is not in use")
ops = torch.ops.lgfast


@pytest.fixture(params=["bf16_products", "float_products"], autouse=True)
def products(request):
    if request.param == "float_products":
        level = FLOAT_LEVELS[-1]
    elif (level := "avx512_bf16") not in LEVELS:
        pytest.skip("needs CPU kernels at level avx512_bf16")
    with held_to(level):
        yield


def make_qkv(n, m, dim, batch=2, heads=3):
    return [torch.randn(batch, length, heads, dim).bfloat16() for length in (n, m, m)]


def run(q, k, v, dout, scale):
    out, lse = ops.short_attention_fwd(q, k, v, scale)
    grads = ops.short_attention_bwd(dout, q, k, v, out, lse, scale)
    return dict(zip(("out", "lse", "dq", "dk", "dv"), (out, lse, *grads), strict=True))


def run_packed(qkv, dout, scale):
    out, lse = ops.short_attention_qkvpacked_fwd(qkv, None, scale)
    return [out, lse, *ops.short_attention_qkvpacked_bwd(dout, qkv, out, lse, scale, True)]


@pytest.mark.parametrize("dim", [32, 48, 64])
@pytest.mark.parametrize(
    "n, m",
    [(1, 1), (2, 2), (1, 5), (5, 1), (16, 17), (25, 33), (49, 49), (65, 65), (197, 197), (784, 49)],
)
def test_matches_float64(n, m, dim):
    q, k, v = make_qkv(n, m, dim)
    dout = torch.randn_like(q)
    check(run(q, k, v, dout, dim**-0.5), q, k, v, dout, dim**-0.5)


@pytest.mark.parametrize("dim", [1, 2, 7, 20, 96, 130])
def test_every_head_dim_matches_float64(dim):
    q, k, v = make_qkv(27, 30, dim)
    dout = torch.randn_like(q)
    check(run(q, k, v, dout, 0.3), q, k, v, dout, 0.3)


@pytest.mark.parametrize(
    "n, m, dim", [(301, 1024, 32), (301, 1024, 48), (301, 1024, 64), (1024, 1024, 32), (4096, 64, 32)]
)
def test_the_longest_sequences_match_float64(n, m, dim):
    q, k, v = make_qkv(n, m, dim, batch=1, heads=1)
    dout = torch.randn_like(q)
    check(run(q, k, v, dout, dim**-0.5), q, k, v, dout, dim**-0.5)


@pytest.mark.parametrize("n, dim", [(17, 32), (197, 64), (730, 32)])
def test_packed_equals_unpacked_and_sums_the_bias_gradient(n, dim):
    qkv = torch.randn(2, n, 3, 3, dim).bfloat16()
    dout = torch.randn(2, n, 3 * dim).bfloat16()
    out, lse, dqkv, dbias = run_packed(qkv, dout, 0.2)
    expected = run(*qkv.unbind(2), dout.view(2, n, 3, dim), 0.2)
    assert torch.equal(out, expected["out"].flatten(2)) and torch.equal(lse, expected["lse"])
    grads = [expected[name] for name in ("dq", "dk", "dv")]
    assert torch.equal(dqkv, torch.stack(grads, 2))
    check_bias_gradient(dbias, grads)


def test_strided_unaligned_and_expanded_inputs():
    q, k, v = make_qkv(33, 50, 32)
    dout = torch.randn_like(q)
    expected = run(q, k, v, dout, 0.2)
    head_major = q.transpose(1, 2).contiguous().transpose(1, 2)
    odd = torch.zeros(2, 50, 3, 33).bfloat16()[..., 1:].copy_(k)
    backwards = torch.zeros(2, 50, 3, 64).bfloat16()[..., ::2].copy_(v)
    got = run(head_major, odd, backwards, dout, 0.2)
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    ones = torch.ones((), dtype=q.dtype)
    got, expected = (run(q, k, v, x, 0.2) for x in (ones.expand_as(q), torch.ones_like(q)))
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_large_scores_neither_overflow_nor_underflow():
    q, k, v = (40 * x for x in make_qkv(33, 35, 32))
    dout = torch.randn_like(q)
    results = run(q, k, v, dout, 1.0)
    scores = torch.einsum("bnhd,bmhd->bhnm", q.double(), k.double())
    assert scores.max() > 5000
    torch.testing.assert_close(results["lse"].double(), scores.logsumexp(-1), rtol=1e-5, atol=0)
    assert all(x.isfinite().all() for x in results.values())


def test_low_scores_of_a_partial_vector_of_keys():
    """exp(0 - lse) would overflow: what fills the last vector must not reach the gradients."""
    q, k, v = torch.ones(1, 3, 1, 32), -10 * torch.ones(1, 5, 1, 32), torch.randn(1, 5, 1, 32)
    q, k, v = (x.bfloat16() for x in (q, k, v))
    dout = torch.randn_like(q)
    check(run(q, k, v, dout, 1.0), q, k, v, dout, 1.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_hidden(bad):
    q, k, v = (x.abs() for x in make_qkv(17, 19, 32))
    k[0, 3, 0, 5] = bad
    results = run(q, k, v, torch.randn_like(q), 0.2)
    lse = results.pop("lse")
    assert not lse[0, 0].isfinite().any() and lse[1].isfinite().all() and lse[:, 1:].isfinite().all()
    for value in results.values():
        assert value[0, :, 0].isnan().all()
        assert value[1].isfinite().all() and value[:, :, 1:].isfinite().all()


def test_neither_threads_nor_batch_change_a_bit():
    qkv = torch.randn(6, 65, 3, 3, 32).bfloat16()
    dout = torch.randn(6, 65, 96).bfloat16()
    threads, results = torch.get_num_threads(), []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append(run_packed(qkv, dout, 0.2))
    torch.set_num_threads(threads)
    alone = run_packed(qkv[2:3], dout[2:3], 0.2)
    for first, second, third, own in zip(*results, alone, strict=True):
        assert torch.equal(first, second) and torch.equal(first, third) and torch.equal(first[2:3], own)


def test_memory_of_another_shape_leaves_no_trace():
    q, k, v = make_qkv(9, 11, 20)
    dout = torch.randn_like(q)
    expected = run(q, k, v, dout, 0.2)
    large = [torch.full_like(x, float("nan")) for x in make_qkv(197, 197, 64)]
    run(*large, large[0], 0.2)
    got = run(q, k, v, dout, 0.2)
    assert all(torch.equal(got[name], expected[name]) for name in expected)
