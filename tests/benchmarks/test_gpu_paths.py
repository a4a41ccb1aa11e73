"""Run what the benchmarks do only on a GPU, on one that computes nothing, and see where its rows go."""

import gc
import types
import warnings
import weakref

import pytest
import torch
from torch import nn

from benchmarks import (
    bench_augment,
    bench_feature_mse,
    bench_fused_layers,
    bench_optimizer,
    bench_short_attention,
    bench_train_step,
    cuda_calls,
    row_file,
    tables,
)
from benchmarks.ceilings import Ceilings
from benchmarks.document_tables.rows import NOT_YET
from benchmarks.document_tables.subjects import SUBJECTS
from benchmarks.suite.parts import GPU
from benchmarks.train_setup import Setup
from lgfast.optim import contract
from tests.benchmarks.fake_gpu import DEVICE, NAME, REPLAY_MS, fake_gpu

LIMITS = Ceilings(3000, 800)
ROUNDS = 2


def attention():
    return bench_short_attention.bench("deit_tiny", 256, "bfloat16", ["lgfast", "math"], DEVICE, LIMITS, ROUNDS)


def feature_mse():
    return bench_feature_mse.bench("deit_tiny", ["torch", "lgfast"], 128, "bfloat16", DEVICE, ROUNDS, LIMITS)


def fused_layers():
    for name in bench_fused_layers.OPS:
        yield from bench_fused_layers.bench(
            name, "deit_tiny", 256, "bfloat16", ["eager", "lgfast"], DEVICE, LIMITS, ROUNDS
        )


def optimizer():
    return bench_optimizer.bench("deit_tiny_patch16_224", ["lgfast", "fused", "foreach"], DEVICE, ROUNDS, LIMITS)


def augment():
    return bench_augment.bench(128, ["lgfast"], "bfloat16", DEVICE, ROUNDS, LIMITS)


BENCHES = {
    "short_attention": attention, "feature_mse": feature_mse, "fused_layers": fused_layers, "optimizer": optimizer,
    "augment": augment,
}  # fmt: skip


def small_network(name: str, device: torch.device) -> nn.Module:
    network = nn.Linear(64, 64, device=device)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return network


@pytest.fixture
def measured(monkeypatch):
    """The rows of the operations, by bench."""
    for module in (bench_augment, bench_feature_mse, bench_fused_layers, bench_optimizer, bench_short_attention):
        monkeypatch.setattr(module, "check", lambda *args: None)  # compares numbers, and there are none
    monkeypatch.setattr(bench_optimizer, "make_network", small_network)
    monkeypatch.setattr(contract, "_check_parameters", lambda parameters: None)  # tensors without data are not plain
    with fake_gpu():
        return {bench: list(rows()) for bench, rows in BENCHES.items()}


def test_rows_are_per_call_of_as_many_copies_as_pass_the_cache(measured):
    copies = {  # 1 + twice 50 MiB over the bytes of one forward call
        "short_attention": 2, "feature_mse": 9, "add_layer_norm": 2, "bias_gelu": 1, "patch_conv": 2, "adamw": 1,
        "augment": 1,
    }  # fmt: skip
    for row in (row for rows in measured.values() for row in rows):
        assert row["error"] == "" and row["median_ms"] == REPLAY_MS / copies[row["op"]], row_file.describe(row)
        assert row["peak_mib"] == 1


def test_every_subject_of_the_readme_has_a_cell_for_the_gpu(measured, tmp_path):
    """The rows have the suite's shapes. Those of whole programs, which cannot run here, are written by hand."""
    step = {"mode": "guided", "shape": "deit_tiny_224 B=128"}
    measured["train_step"] = [step | {"provider": p, "images_per_s": v} for p, v in (("amp", 9.0), ("lgfast", 18.0))]
    loader = {"mode": "16 cores", "shape": "32->224 B=64"}
    measured["loader"] = [loader | {"provider": p, "images_per_s": v} for p, v in (("timm", 5.0), ("resident", 9.0))]
    sweep = {"shape": "deit-ti B=128"}
    measured["sweep"] = [
        sweep | {"provider": p, "trials_per_hour": v} for p, v in (("one_at_a_time", 3.0), ("group", 4.0))
    ]
    with fake_gpu():
        for bench, rows in measured.items():
            row_file.write_rows(bench, rows, DEVICE, tmp_path)
    lines = [line.strip("| ").split(" | ") for line in tables.throughput(tmp_path).splitlines()]
    on_gpu = {line[0]: line for line in lines if line[2:3] == [NAME]}
    assert set(on_gpu) == {subject.name for subject in SUBJECTS if subject.gpu is not None}
    assert all(line[3] not in ("", NOT_YET) for line in on_gpu.values())
    assert on_gpu["guided step, DeiT-Ti"][3:6] == ["18 images/s", "9 images/s (amp)", "2.00x"]
    assert not any(line[2:3] == ["GPU"] for line in lines)


def options_of(part: str) -> list[dict[str, str]]:
    """Option -> value of each command of a part."""
    return [dict(zip(words[::2], words[1::2], strict=False)) for words in (c.text.split() for c in GPU[part])]


def test_the_suite_measures_what_the_readme_reports():
    (attention_options,), (mse_options,) = options_of("attention"), options_of("feature_mse")
    assert attention_options["--shapes"] == "deit_tiny" and "256" in attention_options["--batches"].split(",")
    assert (mse_options["--models"], mse_options["--batch"]) == ("deit_tiny", "128")
    for part in ("step", "compiled"):
        first = options_of(part)[0]
        assert (first["--batch"], first["--guidance"]) == ("128", "on") and "lgfast" in first["--providers"]
    assert options_of("layers")[0]["--batches"] == "256"


def test_a_captured_call_keeps_what_its_graph_reads():
    class Saved:
        """Stands for tensors that a forward pass keeps for its backward."""

    saved = weakref.ref(made := Saved())
    with fake_gpu():
        replay = cuda_calls.captured(lambda made=made: lambda: made)
        del made
        gc.collect()
        assert saved() is not None
        replay()
        del replay
        gc.collect()
        assert saved() is None


def test_waits_are_counted_and_the_mode_is_left_as_it_was(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def call():
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

    assert cuda_calls.waits(call) == 2
    assert modes == ["warn", "default"]


def test_stages_are_captured_with_the_gradients_that_they_read(monkeypatch):
    """The capture's protocol on CPU tensors: made once, run twice, then recorded."""
    recorded = {}

    def captured(make):
        run = make()
        for _ in range(3):
            run()
        return recorded.setdefault(make, run)

    monkeypatch.setattr(bench_train_step, "captured", captured)
    setup = Setup("digits", 2, True, torch.device("cpu"))
    step = setup.train_step("fp32")
    setup.train_step, setup.device = lambda precision: step, types.SimpleNamespace(type="cuda")
    calls = bench_train_step.stage_calls(setup, "fp32")
    assert set(calls) == {"forward", "forward_backward", "optimizer", "student_fwd", "teacher", "step"}
    assert len(recorded) == 5  # the step captures itself
    (gradients,) = calls["optimizer"].__defaults__
    calls["step"]()  # drops the leaves' gradients, not those that the optimizer's graph reads
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
