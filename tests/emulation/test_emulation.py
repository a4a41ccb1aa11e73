"""The emulation itself: it computes what the hardware would, and it catches each kind of planted fault."""

import subprocess

import numpy as np
import pytest
import torch

from tests.emulation.build import build

OUT = 128  # values that every case prints


@pytest.fixture(scope="module")
def program():
    return build("self_test", ["tests/emulation/self_test.cpp"])


def run(program, case, seed=1):
    return subprocess.run([str(program), case, str(seed)], capture_output=True, text=True, timeout=300)


def values(program, case, seed=1):
    result = run(program, case, seed)
    assert result.returncode == 0, result.stderr
    return np.array(result.stdout.splitlines()[:OUT], dtype=np.float64)


def conflicts(program, case):
    return [int(count) for count in run(program, case).stdout.splitlines()[OUT].split()]


@pytest.mark.parametrize("seed", range(5))
def test_block_sum_does_not_depend_on_the_seed(program, seed):
    out = values(program, "sum", seed)
    assert (out[:64] == 64 * 63 / 2).all() and (out[64:] == -1).all()


@pytest.mark.parametrize("case", ["matmul", "matmul_trans"])
def test_matrix_product_matches_numpy(program, case):
    i = np.arange(512)
    numbers = (i % 13 - 6) + 0.25 * (i % 3)  # as in self_test.cpp; exact in bf16
    a = numbers[:256].reshape(16, 16)
    b = numbers[256:384].reshape(16, 8) if case == "matmul_trans" else numbers[256:384].reshape(8, 16).T
    np.testing.assert_allclose(values(program, case).reshape(16, 8), a @ b, rtol=1e-6)


def test_async_copy_fills_invalid_rows_with_zeros(program):
    i = 4 * np.arange(64)
    expected = np.where(np.arange(64) % 2 == 0, (i % 13 - 6) + 0.25 * (i % 3), 0)
    np.testing.assert_array_equal(values(program, "copy")[:64], expected)


@pytest.mark.parametrize(
    "case, ldmatrix, copies",
    [
        ("copy", 0, 0),  # neighbours 16 bytes apart
        ("spread_copy", 0, 8),  # 32 bytes apart: each eight of the 64 threads take two turns
        ("matmul", 8, 0),  # rows of 32 bytes: two turns for each of a's and b's four matrices
        ("matmul_trans", 4, 0),  # b's rows have 16 bytes and need no second turn
    ],
)
def test_bank_conflicts_are_counted(program, case, ldmatrix, copies):
    assert conflicts(program, case) == [ldmatrix, copies]


def test_out_of_bounds_shared_memory_access_is_caught(program):
    result = run(program, "out_of_bounds")
    assert result.returncode != 0
    assert "heap-buffer-overflow" in result.stderr and "block_sum_kernel" in result.stderr


def test_missing_barrier_is_caught(program):
    outputs = [values(program, "missing_barrier", seed) for seed in range(5)]
    assert any(not np.array_equal(out, outputs[0], equal_nan=True) for out in outputs[1:])
    assert np.isnan(outputs).any()  # shared memory that nobody wrote yet


@pytest.mark.parametrize("seed", range(5))
def test_the_last_block_to_end_finds_the_parts_of_all(program, seed):
    out = values(program, "last_block", seed)
    assert (out[:64] == 1 + 2 + 3 + 4).all() and (out[64:] == -1).all()


@pytest.mark.parametrize("case", ["turn_before_part", "no_barrier_before_flag"])
def test_a_last_block_that_reads_too_early_is_caught(program, case):
    results = [run(program, case, seed) for seed in range(5)]
    right = [str(sum(range(5)))] * 64 + ["-1"] * 64
    assert any(result.stdout.splitlines()[:OUT] != right for result in results)


def test_launches_that_may_run_at_the_same_time_share_no_counter(program):
    stream, other, again, captured, captured_again, other_again, third, too_many, first = map(
        int, run(program, "places").stdout.split()
    )
    assert stream == again == first and other == other_again
    assert sorted({stream, other, captured, captured_again, third}) == list(range(5))
    assert too_many == -1


def test_missing_wait_for_an_async_copy_is_caught(program):
    assert np.isnan(values(program, "missing_wait")[:64]).any()


def test_divergent_shuffle_is_caught(program):
    result = run(program, "divergent_shuffle")
    assert result.returncode == 70
    assert "divergent warp" in result.stderr
    assert "threads 0-15: waits at shfl_xor (self_test.cpp:" in result.stderr


def test_barrier_that_some_threads_skip_is_a_reported_deadlock(program):
    result = run(program, "partial_barrier")
    assert result.returncode == 70
    assert "deadlock" in result.stderr and "threads 0-39: waits at sync_threads" in result.stderr


@pytest.mark.parametrize("case", ["warpgroup_abt", "warpgroup_ab"])
def test_product_of_a_warpgroup_matches_numpy(program, case):
    i = np.arange(512)
    numbers = (i % 13 - 6) + 0.25 * (i % 3)  # as in self_test.cpp; exact in bf16
    rows = numbers[(np.arange(64)[:, None] * 64 + np.arange(64)) % 256]
    others = numbers[100 + (np.arange(64)[:, None] * 64 + np.arange(64)) % 256]
    if case == "warpgroup_ab":
        expected = rows[[0, 40], :16] @ others[:16]
    else:
        expected = 2 * rows[[0, 40], 16:32] @ others[:64, 16:32].T
    np.testing.assert_allclose(values(program, case).reshape(2, 64), expected, rtol=1e-6)


def test_product_of_a_transposed_left_operand_matches_numpy(program):
    i = np.arange(512)
    numbers = (i % 13 - 6) + 0.25 * (i % 3)  # as in self_test.cpp; exact in bf16
    rows = numbers[(np.arange(16)[:, None] * 64 + np.arange(64)) % 256]
    others = numbers[100 + (np.arange(16)[:, None] * 64 + np.arange(64)) % 256]
    expected = rows[:, [0, 40]].T @ others[:, :16].T
    np.testing.assert_allclose(values(program, "transposed_right").reshape(2, 64)[:, :16], expected, rtol=1e-6)


@pytest.mark.parametrize("case", ["stmatrix", "stmatrix_trans"])
def test_product_of_a_transposed_matrix_that_registers_stored_matches_numpy(program, case):
    i = np.arange(512)
    numbers = (i % 13 - 6) + 0.25 * (i % 3)  # as in self_test.cpp; exact in bf16
    left = numbers[(np.arange(16)[:, None] * 64 + np.arange(64)) % 256]
    right = numbers[100 + (np.arange(8)[:, None] * 64 + np.arange(64)) % 256]
    expected = left.T @ right[:2, :16].T
    np.testing.assert_allclose(values(program, case).reshape(64, 2), expected, rtol=1e-6)
    assert conflicts(program, case)[0] == 0


def test_two_matrices_are_stored_transposed(program):
    i = np.arange(128)
    numbers = ((i % 13 - 6) + 0.25 * (i % 3)).reshape(2, 8, 8)
    np.testing.assert_array_equal(values(program, "stmatrix_x2").reshape(2, 8, 8), numbers.swapaxes(1, 2))


@pytest.mark.parametrize(
    "case, complaint",
    [
        ("early_sums", "use-after-poison"),
        ("early_a", "use-after-poison"),
        ("overwritten", "is written before the product that reads it was waited for"),
        ("overwritten_by_copy", "is written before the product that reads it was waited for"),
        ("overwritten_by_matrix", "is written before the product that reads it was waited for"),
        ("no_proxy_fence", "without fence_async_proxy()"),
        ("no_fence_after_matrix", "without fence_async_proxy()"),
        ("fence_before_the_copy", "without fence_async_proxy()"),
        ("no_group_fence", "does not begin with warpgroup_fence()"),
        ("no_wait", "products that nobody waited for"),
        ("beyond_memory", "is outside the block's"),
        ("misaligned", "does not begin eight rows"),
        ("other_swizzle", "the swizzle is 2"),
        ("half_a_warpgroup", "is not in four warps"),
        ("other_operands", "different operands"),
        ("other_count", "waits for"),
    ],
)
def test_wrong_use_of_warpgroups_is_caught(program, case, complaint):
    result = run(program, case)
    assert result.returncode != 0 and complaint in result.stderr


@pytest.mark.parametrize(
    "fault, complaint",
    [
        ("early_sums", "use-after-poison"),
        ("overwritten", "is written before the product that reads it was waited for"),
        ("no_proxy_fence", "without fence_async_proxy()"),
        ("no_group_fence", "does not begin with warpgroup_fence()"),
        ("no_wait", "products that nobody waited for"),
        ("beyond_memory", "is outside the block's"),
        ("misaligned", "does not begin eight rows"),
        ("beyond_the_row", "columns beyond the row"),
        ("other_swizzle", "the swizzle is 2"),
        ("other_operands", "different operands"),
    ],
)
def test_wrong_use_of_a_transposed_left_operand_is_caught(program, fault, complaint):
    result = run(program, f"transposed_{fault}")
    assert result.returncode != 0 and complaint in result.stderr


def test_more_registers_than_a_block_began_with_are_caught(program):
    """640 threads begin with 96 each: 61,440 of the multiprocessor's 65,536."""
    assert (values(program, "registers") == 120).all()
    assert "ask for 64512 registers, but the block has 61440" in run(program, "too_many_registers").stderr


@pytest.mark.parametrize("seed", range(5))
def test_a_warp_that_does_not_wait_at_a_barrier_frees_those_that_do(program, seed):
    np.testing.assert_array_equal(values(program, "named_barrier", seed)[:96], np.repeat([0.0, 1.0, 2.0], 32))


@pytest.mark.parametrize("seed", range(5))
def test_a_warp_waits_for_the_phases_of_a_barrier(program, seed):
    np.testing.assert_array_equal(values(program, "phases", seed), np.repeat(np.arange(4.0), 32))


@pytest.mark.parametrize(
    "case, complaint",
    [
        ("no_sync_after_init", "with no sync_threads() since"),
        ("arrives_twice", "arrives twice in a phase"),
        ("too_few_arrive", "deadlock, no thread can go on"),
        ("not_begun", "no barrier begins at byte offset"),
    ],
)
def test_wrong_use_of_a_barrier_of_phases_is_caught(program, case, complaint):
    result = run(program, case)
    assert result.returncode == 70 and complaint in result.stderr


def test_a_wait_for_the_other_phase_is_caught(program):
    """It goes on before the number is there: the numbers differ, or nobody waits for the last phase."""
    right = list(map(str, np.repeat(np.arange(4), 32)))
    assert all(run(program, "other_parity", seed).stdout.splitlines()[:OUT] != right for seed in range(5))


def test_impossible_launch_returns_an_error(program):
    assert "invalid block size" in run(program, "bad_block").stderr


def test_float16_conversions_match_torch(program):
    result = np.array(run(program, "conversions").stdout.split(), dtype=np.uint32).reshape(65536, 4)
    bits = torch.arange(65536).to(torch.uint16)
    k = np.arange(65536, dtype=np.uint32)
    for column, dtype in [(0, torch.bfloat16), (1, torch.float16)]:
        expected = bits.view(dtype).float()
        got = torch.from_numpy(result[:, column].copy()).view(torch.float32)
        torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)
    for column, dtype, pattern in [(2, torch.bfloat16, k * 65537), (3, torch.float16, 0x30000000 + k * 12289)]:
        source = torch.from_numpy(pattern.astype(np.uint32)).view(torch.float32)
        got = torch.from_numpy(result[:, column].astype(np.uint16)).view(dtype)
        torch.testing.assert_close(got, source.to(dtype), rtol=0, atol=0, equal_nan=True)
