"""The CUDA kernels of short_attention in the host emulation, against float64.

Every run is under AddressSanitizer and UBSan. Outputs start as NaN, so an element that is not written fails.
"""

import functools
import importlib

import pytest
import torch

from lgfast import _extension
from tests.attention_truth import (
    DTYPES,
    HEAD_DIMS,
    LENGTHS,
    ROW_CAPACITY_EDGES,
    UNEQUAL,
    check_bias_gradient,
    true_attention,
)
from tests.emulation.attention_case import VARIANTS, poisoned, run_kernels
from tests.rounding import assert_rounded

pytestmark = pytest.mark.slow


def random_tensor(shape, dtype, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def check_all(result, expected):
    for name, truth in expected.items():
        assert_rounded(getattr(result, name), truth, name)
    if result.dbias is not None:
        check_bias_gradient(result.dbias, [expected[name].exact for name in ("dq", "dk", "dv")])


@functools.cache  # other tests run the same cases otherwise
def plain_case(n, m, dim, dtype, batch, heads):
    """q, k, v, dout, and what they should give."""
    q, dout = (random_tensor((batch, n, heads, dim), dtype, seed) for seed in (1, 4))
    k, v = (random_tensor((batch, m, heads, dim), dtype, seed) for seed in (2, 3))
    return (q, k, v, dout), true_attention(q, k, v, dout, dim**-0.5)


def run_plain_case(n, m, dim, dtype, folder, batch=1, heads=1, **options):
    inputs, expected = plain_case(n, m, dim, dtype, batch, heads)
    q, k, v, _ = inputs
    outputs = [(poisoned(x.shape, dtype), None) for x in (q, q, k, v)]
    result = run_kernels(*((x, None) for x in inputs), dim**-0.5, folder, outputs, **options)
    check_all(result, expected)
    return result


@pytest.mark.parametrize("dtype, dim", VARIANTS)
@pytest.mark.parametrize("n", LENGTHS)
def test_kernels_match_float64(n, dim, dtype, tmp_path):
    run_plain_case(n, n, dim, dtype, tmp_path)


@pytest.mark.parametrize("m", ROW_CAPACITY_EDGES)
def test_every_number_of_key_tiles_matches_float64(m, tmp_path):
    run_plain_case(20, m, 64, torch.bfloat16, tmp_path)


@pytest.mark.parametrize("dim", HEAD_DIMS)
@pytest.mark.parametrize("n, m", UNEQUAL)
def test_keys_and_queries_differ_in_number(n, m, dim, tmp_path):
    run_plain_case(n, m, dim, torch.bfloat16, tmp_path)


@pytest.mark.parametrize(
    "n, m, dim",
    [(17, 17, 64), (65, 65, 48), (197, 197, 64), (196, 49, 32), (900, 49, 32), (256, 256, 32), (40, 300, 32)],
)
def test_every_schedule_gives_the_same_bits(n, m, dim, tmp_path):
    run_plain_case(n, m, dim, torch.bfloat16, tmp_path, heads=2, seeds=5, has_bias=True)


@pytest.mark.parametrize(
    "n, m, dim, multiprocessors",
    [(20, 150, 32, 2), (20, 150, 32, 4), (20, 150, 32, 7), (20, 150, 32, 100), (300, 49, 32, 4), (33, 208, 64, 7)],
)
def test_blocks_take_head_after_head(n, m, dim, multiprocessors, tmp_path, monkeypatch):
    """Of 15 heads, five an image, a block's next head is in the same image, in the next, or in a later one."""
    monkeypatch.setenv("LGFAST_EMULATED_MULTIPROCESSORS", str(multiprocessors))
    run_plain_case(n, m, dim, torch.bfloat16, tmp_path, batch=3, heads=5, has_bias=True)


@pytest.mark.parametrize("n, m", [(193, 208), (208, 193)])
def test_a_block_of_warpgroups_takes_head_after_head(n, m, tmp_path):
    """Four heads: each of the two stages of shared memory serves two."""
    run_plain_case(n, m, 64, torch.float16, tmp_path, heads=4)


# Every number of queries and of keys that the products of warpgroups take; 197 both are among LENGTHS.
@pytest.mark.parametrize("n, m", [(193 + i, 193 + (i * 7 + 5) % 16) for i in range(16)])
def test_every_number_of_tokens_by_warpgroups_matches_float64(n, m, tmp_path):
    run_plain_case(n, m, 64, torch.bfloat16, tmp_path, has_bias=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gpu_without_products_of_warpgroups_matches_float64(dtype, tmp_path, monkeypatch):
    monkeypatch.setenv("LGFAST_EMULATED_WGMMA", "0")
    run_plain_case(197, 197, 64, DTYPES[dtype], tmp_path)


def cut(kb, n, m, dim):
    """Return how the kernels split a shape on a GPU that gives a block so many KB of shared memory."""
    plan = importlib.import_module("lgfast._C").short_attention_plan(1, n, m, dim, kb << 10, has_bias=True)
    fwd, bwd = plan["fwd"], plan["bwd"]
    return dim, fwd["row_capacity"], fwd["key_rows"], fwd["warps"], bwd["resident"], bwd["key_rows"], bwd["parts"]


def cases_cut_otherwise(*limits):
    """Return (KB, n, m, dim): one shape for every way of splitting that the GPU of the other tests does not use."""
    if not _extension.has_native():
        return []
    shapes = [*((n, n) for n in LENGTHS), *((20, m) for m in ROW_CAPACITY_EDGES), *UNEQUAL]
    cases = [(kb, n, m, dim) for kb in limits for n, m in shapes for dim in HEAD_DIMS]
    known = {cut(227, *case[1:]) for case in cases}
    first_of = {cut(*case): case for case in reversed(cases)}
    return [case for how, case in first_of.items() if how not in known]


@pytest.mark.parametrize("kb, n, m, dim", cases_cut_otherwise(99, 163, 66))
def test_what_gpus_with_less_shared_memory_run_matches_float64(kb, n, m, dim, tmp_path, monkeypatch):
    """99 KB: GPUs 8.6, 8.9, 12.0; 163 KB: 8.0; 66 KB: no GPU that is served, but the loop then takes short rows too."""
    monkeypatch.setenv("LGFAST_EMULATED_SMEM_BYTES", str(kb << 10))
    run_plain_case(n, m, dim, torch.bfloat16, tmp_path, has_bias=True)


def test_a_gpu_without_the_memory_is_refused_by_the_launch(tmp_path, monkeypatch):
    monkeypatch.setenv("LGFAST_EMULATED_SMEM_BYTES", str(48 << 10))
    with pytest.raises(AssertionError, match="invalid shared memory size"):
        run_plain_case(197, 197, 64, torch.bfloat16, tmp_path)


@pytest.mark.parametrize("n", [17, 197])
@pytest.mark.parametrize("dim", HEAD_DIMS)
def test_packed_qkv_is_read_and_its_gradient_written_in_place(n, dim, tmp_path):
    dtype, batch, heads, scale = torch.bfloat16, 2, 2, 0.3
    packed = random_tensor((batch, n, 3, heads, dim), dtype, 1)
    gradient = poisoned(packed.shape, dtype)
    q, k, v = packed.unbind(2)
    dout = random_tensor((batch, n, heads, dim), dtype, 2)
    outputs = [(poisoned(q.shape, dtype), None), *((gradient, x) for x in gradient.unbind(2))]
    result = run_kernels((packed, q), (packed, k), (packed, v), (dout, None), scale, tmp_path, outputs, has_bias=True)
    check_all(result, true_attention(q, k, v, dout, scale))


def test_strided_and_sliced_tensors(tmp_path):
    """q is head-major, k a slice of longer rows, v has strides of its own, dout is expanded over the batch."""
    batch, n, m, heads, dim, dtype = 2, 33, 49, 2, 32, torch.bfloat16
    q_buffer = random_tensor((batch, heads, n, dim), dtype, 1)
    k_buffer = random_tensor((batch, m + 3, heads, dim + 16), dtype, 2)
    v_buffer = random_tensor((m, batch, heads, dim), dtype, 3)
    dout_buffer = random_tensor((1, n, heads, dim), dtype, 4)
    q = q_buffer.transpose(1, 2)
    k = k_buffer[:, 2 : m + 2, :, 8 : dim + 8]
    v = v_buffer.transpose(0, 1)
    dout = dout_buffer.expand(batch, -1, -1, -1)
    out_buffer = poisoned((batch, heads, n, dim), dtype)
    outputs = [(out_buffer, out_buffer.transpose(1, 2)), *((poisoned(x.shape, dtype), None) for x in (q, k, v))]
    result = run_kernels((q_buffer, q), (k_buffer, k), (v_buffer, v), (dout_buffer, dout), 0.2, tmp_path, outputs)
    check_all(result, true_attention(q, k, v, dout, 0.2))


@pytest.mark.parametrize("n", [65, 197, 300])
def test_large_scores_do_not_overflow(n, tmp_path):
    """Scores in the thousands: for most queries one probability is 1 and the others are 0."""
    dtype, dim = torch.bfloat16, 64
    q, k = (40 * random_tensor((1, n, 1, dim), dtype, seed) for seed in (1, 2))
    v, dout = (random_tensor((1, n, 1, dim), dtype, seed) for seed in (3, 4))
    outputs = [(poisoned(q.shape, dtype), None) for _ in range(4)]
    result = run_kernels((q, None), (k, None), (v, None), (dout, None), 1.0, tmp_path, outputs)
    check_all(result, true_attention(q, k, v, dout, 1.0))
