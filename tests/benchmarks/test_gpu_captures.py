"""What the benchmarks capture on a GPU, on the stand-in of tests/fake_cuda.py: real numbers, and CUDA's rules."""

import contextlib
import types

import pytest
import torch
from torch import nn

from benchmarks import bench_feature_mse, bench_fused_layers, bench_short_attention, bench_train_step, cuda_calls
from benchmarks.peers import PEERS
from benchmarks.train_setup import Setup
from tests.fake_cuda import fake_cuda

CPU = torch.device("cpu")


@pytest.fixture
def cuda(monkeypatch):
    with fake_cuda(monkeypatch) as cuda:
        yield cuda


def test_every_stage_of_a_step_can_be_captured_and_replayed_in_turns(cuda):
    setup = Setup("digits", 2, True, CPU)
    step = setup.train_step("fp32")
    setup.train_step, setup.device = lambda precision: step, types.SimpleNamespace(type="cuda")
    calls = bench_train_step.stage_calls(setup, "fp32")
    del calls["step"]  # captures itself, tests/step/test_step_graph.py
    for call in calls.values():
        call()
    assert len(cuda.graphs) == len(calls) == 5
    assert all(parameter.isfinite().all() for parameter in step.student.parameters())


def test_the_peer_in_a_graph_trains_as_it_does_without(cuda, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **kwargs: function)
    monkeypatch.setattr(nn.Module, "compile", lambda module, **kwargs: None)
    setup = Setup("digits", 4, True, CPU)
    eager, graphed = (
        PEERS[name](setup.student, setup.teacher, setup.shape.layers, "fp32") for name in ("amp", "compile-graph")
    )
    graphed.is_cuda, graphed.autocast = True, contextlib.nullcontext
    batch = setup.batch
    inputs = (batch.images, batch.teacher_images, batch.labels)
    expected = [float(eager(*inputs)) for _ in range(4)]
    assert [float(graphed(*inputs)) for _ in range(2)] == expected[2:]  # two steps warm up
    assert len(cuda.graphs) == 1


def operation(name):
    """mode -> a call on two copies of small inputs."""
    if name == "short_attention":
        shape = bench_short_attention.SHAPES["pvt_v2_b0_stage4"]
        inputs = [bench_short_attention.make_inputs(shape, 1, torch.float32, CPU) for _ in range(2)]
        return lambda mode: bench_short_attention.run_mode(bench_short_attention.PROVIDERS["math"], mode, inputs)
    if name == "feature_mse":
        copies = [bench_feature_mse.make_maps("deit_tiny", 1, torch.float32, CPU) for _ in range(2)]
        return lambda mode: lambda: bench_feature_mse.run_mode(bench_feature_mse.composed, mode, copies)
    shape = bench_fused_layers.Shape(9, 8, 1)
    inputs, douts = bench_fused_layers.make_inputs("bias_gelu", 1, shape, torch.float32, CPU)
    return lambda mode: lambda: bench_fused_layers.run(bench_fused_layers.eager_gelu, inputs, douts, mode)


@pytest.mark.parametrize(
    ("name", "modes"),
    [("short_attention", ("fwd", "bwd", "both")), ("feature_mse", ("fwd", "both")), ("bias_gelu", ("fwd", "both"))],
)
def test_the_modes_of_an_operation_are_captured_one_beside_the_other(cuda, name, modes):
    make = operation(name)
    replays = [cuda_calls.captured(lambda mode=mode: make(mode)) for mode in modes]
    for _ in range(2):
        for replay in replays:
            replay()
    assert len(cuda.graphs) == len(modes)
