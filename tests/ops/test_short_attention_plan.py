"""How short_attention cuts shapes on GPUs whose blocks can have more or less shared memory, and what it refuses."""

import importlib

import pytest

from lgfast import _extension
from lgfast.ops.short_attention import FEW_KEYS, HEAD_DIMS, MAX_QUERIES_FEW_KEYS, MAX_TOKENS, lack_of_smem

pytestmark = pytest.mark.skipif(not _extension.has_native(), reason="needs lgfast._C")

SMEM_KB = {"8.6, 8.9, 12.0, 12.1": 99, "8.0, 8.7": 163, "9.0, 10.0, 10.3, 11.0": 227}  # CUDA C++ programming guide
ROW_CAPACITIES = [64, 128, 192, 208]  # keys of the longest row that a forward kernel takes; the loop takes more
RESERVED = 1024  # bytes of shared memory that CUDA keeps of each block; a multiprocessor has 1 KB more than a block


def plan(batch_heads, n, m, dim, kb, **options):
    return importlib.import_module("lgfast._C").short_attention_plan(batch_heads, n, m, dim, kb << 10, **options)


def every_length():
    yield from ((n, n) for n in range(1, MAX_TOKENS + 1))
    for m in range(1, MAX_TOKENS + 1, 15):
        yield from ((MAX_TOKENS, m), (1, m))
    for m in range(1, FEW_KEYS + 1):
        yield from ((n, m) for n in (65, 3136, MAX_QUERIES_FEW_KEYS))


@pytest.mark.parametrize("gpus", SMEM_KB)
@pytest.mark.parametrize("dim", HEAD_DIMS)
def test_every_supported_shape_has_kernels_that_fit(dim, gpus):
    kb = SMEM_KB[gpus]
    assert kb << 10 >= importlib.import_module("lgfast._C").SHORT_ATTENTION_SMEM_FOR_EVERY_SHAPE
    for n, m in every_length():
        assert lack_of_smem(kb << 10, n, m, dim) is None
        cut = plan(768, n, m, dim, kb, has_bias=True)
        for part in (cut["fwd"], cut["bwd"]):
            assert 0 < part["smem_bytes"] <= kb << 10, (n, m, part)
        rows = cut["fwd"]["warps"] * cut["fwd"]["rows_per_warp"]
        assert cut["fwd"]["blocks"] >= 768 and cut["fwd"]["blocks"] // 768 <= -(-n // rows)


@pytest.mark.parametrize("gpus", SMEM_KB)
@pytest.mark.parametrize("dim", HEAD_DIMS)
def test_the_smallest_kernel_that_takes_the_keys_is_chosen(dim, gpus):
    for keys in range(1, MAX_TOKENS + 1):
        forward = plan(768, keys, keys, dim, SMEM_KB[gpus])["fwd"]
        enough = [capacity for capacity in ROW_CAPACITIES if capacity >= keys]
        assert forward["row_capacity"] == (enough[0] if enough else 0)  # 0: the loop
        assert forward["key_rows"] % 16 == 0 and (not enough or forward["key_rows"] == -(-keys // 16) * 16)


@pytest.mark.parametrize(("gpus", "key_rows"), list(zip(SMEM_KB, (256, 368, 736), strict=True)))
def test_the_loop_takes_so_many_keys_at_a_time_that_two_blocks_have_room(gpus, key_rows):
    """PiT has 730 tokens."""
    forward = plan(768, 730, 730, 32, SMEM_KB[gpus])["fwd"]
    assert (forward["key_rows"], forward["warps"]) == (key_rows, 6)
    multiprocessor = (SMEM_KB[gpus] << 10) + RESERVED
    assert 2 * (forward["smem_bytes"] + RESERVED) <= multiprocessor


def test_a_head_stays_on_chip_in_backward_where_it_fits():
    resident = {kb: plan(768, 197, 197, 64, kb, has_bias=True)["bwd"]["resident"] for kb in SMEM_KB.values()}
    assert resident == {99: False, 163: True, 227: True}
    assert all(plan(768, 197, 197, 32, kb, has_bias=True)["bwd"]["resident"] for kb in SMEM_KB.values())


def test_a_gpu_with_too_little_shared_memory_is_refused_with_the_numbers():
    words = "197 queries and 197 keys need 57 KB of shared memory a block, of which the GPU gives 48"
    assert lack_of_smem(48 << 10, 197, 197, 64) == words
    assert lack_of_smem(57 << 10, 197, 197, 64) is None
    with pytest.raises(ValueError, match=f"short_attention: {words}"):
        plan(1, 197, 197, 64, 48)


@pytest.mark.parametrize(
    "batch_heads, queries, keys, blocks",
    [
        (768, 197, 197, 1),  # 2.9 waves of two blocks on 132 multiprocessors: full as they are
        (3, 197, 197, 2),  # one image: every round of queries is a block of its own
        (256, 3136, 49, 2),  # half a wave of four blocks; half of the queries each makes 0.97
    ],
)
def test_queries_are_divided_to_fill_the_gpu(batch_heads, queries, keys, blocks):
    head_dim = 64 if keys > 64 else 32
    assert plan(batch_heads, queries, keys, head_dim, 227)["fwd"]["blocks"] == blocks * batch_heads


def test_how_blocks_of_deit_tiny_fill_a_multiprocessor():
    cut = plan(256 * 3, 197, 197, 64, 227, has_bias=True, multiprocessors=132)
    assert cut["fwd"]["row_capacity"] == 208 and cut["bwd"]["resident"]
    assert 3 * (cut["fwd"]["smem_bytes"] + RESERVED) <= 228 << 10
    assert cut["bwd"]["blocks"] == 132  # one a multiprocessor, which takes head after head
