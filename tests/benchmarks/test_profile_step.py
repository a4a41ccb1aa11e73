"""The profile of a step: bytes of operations against known tensors, kernels found by name."""

import pytest
import torch

from benchmarks import profile_step
from benchmarks.ceilings import Ceilings
from benchmarks.train_setup import Setup

CPU = torch.device("cpu")


def test_traffic_counts_every_tensor_that_is_read_or_written():
    a, b, out = torch.ones(8, 4), torch.ones(4, 2), torch.zeros(8, 2)
    with profile_step.Traffic() as traffic:
        product = a @ b  # 32 + 8 read, 16 written, 4 bytes each
        out.add_(product)  # 16 and 16 read, 16 written
        out.t()  # a view
    assert traffic.num_bytes == {"aten::mm": 4 * 56, "aten::add_": 4 * 48}
    assert traffic.calls == {"aten::mm": 1, "aten::add_": 1}


def test_traffic_sees_the_backward_pass_and_lgfast_s_operations():
    setup = Setup("digits", 2, True, CPU)
    step = setup.train_step("fp32", graph="off")
    step(setup.batch)
    with profile_step.Traffic() as traffic:
        step(setup.batch)
    count = sum(parameter.numel() for parameter in step.student.parameters())
    adamw = traffic.num_bytes["lgfast::flat_adamw"]  # 28 bytes a parameter, and what pads and steers it
    assert 28 * count <= adamw <= 1.05 * 28 * count
    assert traffic.calls["lgfast::feature_mse_fwd"] == 1
    assert traffic.calls["aten::convolution_backward"] == 1  # of the patches; the teacher has no gradient


def test_kernels_are_found_by_the_names_of_operations():
    traffic = profile_step.Traffic()
    for name, num_bytes in (("short_attention_qkvpacked_fwd", 60), ("feature_mse_fwd", 40), ("flat_adamw", 8)):
        traffic.calls[f"lgfast::{name}"], traffic.num_bytes[f"lgfast::{name}"] = 2, num_bytes
    known = {
        "void lgfast::short_attention_fwd_kernel<lgfast::Traits<64>>(Params)": 30,
        "void lgfast::feature_mse_kernel<float>(Params)": 20,
        "flat_adamw_kernel": 4,
        "flat_adamw_norm_kernel": None,
        "void lgfast::short_attention_bwd_kernel<64>(Params)": None,
        "ampere_bf16_s16816gemm": None,
    }
    assert {name: profile_step.kernel_bytes(name, traffic) for name in known} == known


def test_rows_keep_the_top_and_sum_up_the_rest():
    times = {"a": (1, 60.0), "b": (2, 30.0), "c": (3, 6.0), "d": (4, 4.0)}
    rows = list(profile_step.rows_of("kernel", times, {"a": 6e4}, Ceilings(10, 1), top=2))
    assert [row["name"] for row in rows] == ["a", "b", "2 others"]
    assert [row["share"] for row in rows] == pytest.approx([0.6, 0.3, 0.1])
    assert rows[2]["launches"] == 7 and rows[0]["copy_share"] == pytest.approx(0.1)  # 60 kB in 60 us: 1 GB/s of 10
