"""Runs of two real gloo processes under torchrun."""

import os
import signal
from pathlib import Path

import pytest
import torch
from torch import distributed as dist

from lgfast.assembly.run import train_run
from lgfast.config import dump_yaml, load_recipe, replace
from lgfast.data import Batch, EvalLoader, load_dataset
from lgfast.guidance import GuidedStudent
from lgfast.models import create_model
from lgfast.optim.flat_adamw import FlatAdamW
from lgfast.records.checkpoint import CheckpointStore, read_weights
from lgfast.records.result import read_result
from lgfast.runtime import ranks
from lgfast.step import TrainMeter, TrainStep
from tests.processes import TrainProcess, torchrun
from tests.runs import metrics, tiny_config, wait_for_step

CHANGES = {
    "epochs": 5,
    "data.batch_size": 128,  # 2 x 64
    "data.train_limit": 700,
    "optim.lr": 1e-3,
    "optim.warmup_epochs": 1,
    "model.drop_path_rate": 0.0,
    "log.every_steps": 1,
    "log.save_every_steps": 2,
}


def two_of(config, folder: Path) -> list[str]:
    """torchrun's arguments for two ranks."""
    file = folder / f"{Path(config.run_dir).name}.yaml"
    file.write_text(dump_yaml(config))
    return ["--nproc-per-node", "2", "-m", "lgfast.train", "--config", str(file)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def two_ranks(folder):
    """A finished run of two ranks."""
    config = replace(tiny_config(folder, run_dir=str(folder / "two")), CHANGES | {"teacher.bn": "running"})
    code, out, err = TrainProcess(folder, *two_of(config, folder), command=torchrun).finish(timeout=400)
    assert code == 0, err
    return config, out


@pytest.mark.slow
def test_two_ranks_equal_one_with_the_same_global_batch(two_ranks, folder):
    config, out = two_ranks
    alone = replace(config, {"run_dir": str(folder / "one")})
    train_run(alone)
    ours, theirs = metrics(config.run_dir), metrics(alone.run_dir)
    assert [(row["kind"], row["step"]) for row in ours] == [(row["kind"], row["step"]) for row in theirs]
    for own, other in zip(ours, theirs, strict=True):
        # Only the order of float32 sums differs; AdamW turns that into at most a few 1e-5 of the loss in 20 steps.
        assert own["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert own["guidance_loss"] == pytest.approx(other["guidance_loss"], rel=1e-4)
    weights, expected = (read_weights(Path(c.run_dir) / "last.safetensors")[0] for c in (config, alone))
    moved = config.optim.lr * len([row for row in ours if row["kind"] == "train"])  # the furthest AdamW can go
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=0.02 * moved)
    assert out.count("student test accuracy") == 1 and out.count("epoch 5/5") == 1  # one rank speaks
    assert read_result(config.run_dir).test_top1 == pytest.approx(read_result(alone.run_dir).test_top1, abs=2)


@pytest.mark.slow
def test_a_killed_rank_is_restarted_from_the_last_checkpoint(two_ranks, folder):
    config, _ = two_ranks
    killed = replace(config, {"run_dir": str(folder / "killed")})
    process = TrainProcess(folder, "--max-restarts", "1", *two_of(killed, folder), command=torchrun)
    wait_for_step(Path(killed.run_dir), 6, process, timeout=300)
    pids = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(pids[0]), signal.SIGKILL)  # the writer
    code, out, err = process.finish(timeout=400)
    assert code == 0, err
    assert f"continuing {killed.run_dir} after step" in out
    assert metrics(killed.run_dir) == metrics(config.run_dir)
    for name in ("best.safetensors", "last.safetensors"):
        weights, expected = (read_weights(Path(c.run_dir) / name)[0] for c in (killed, config))
        assert all(torch.equal(weights[key], expected[key]) for key in expected)
    assert len(CheckpointStore(Path(killed.run_dir)).load_newest()[1]["ranks"]) == 2


def test_every_rank_takes_the_first_ones_statistics(monkeypatch):
    """All ranks judge one model and continue from one checkpoint, so their BatchNorms must agree."""
    student = GuidedStudent(create_model("cifar_resnet8", 5))
    step = TrainStep(student, None, FlatAdamW(student.parameters()), TrainMeter("cpu"), precision="bf16")
    monkeypatch.setattr(ranks, "world", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda values: None)
    sent = []
    monkeypatch.setattr(dist, "broadcast", lambda values, source: sent.append((len(values), source)) or values.fill_(7))
    step(Batch(torch.randn(4, 3, 16, 16), None, torch.arange(4), torch.arange(4)))
    tracked = {name: buffer for name, buffer in student.named_buffers() if "running" in name}
    assert sent == [(sum(buffer.numel() for buffer in tracked.values()), 0)]
    assert all((buffer == 7).all() for buffer in tracked.values())


def test_graphs_end_before_the_ranks_part(monkeypatch):
    """NCCL waits at its end for graphs that hold its exchanges."""
    order = []
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "1"}.items():
        monkeypatch.setenv(name, value)
    for name in ("open_store", "meet"):
        monkeypatch.setattr(ranks, name, lambda *_: ranks.Start())
    monkeypatch.setattr(ranks, "world", lambda: 2)
    for name in ("PrefixStore", "init_process_group"):
        monkeypatch.setattr(dist, name, lambda *_, **__: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: order.append("parted"))
    graph = type("Graph", (), {"reset": lambda self: order.append("reset")})()
    with ranks.joined(torch.device("cpu")):
        ranks.end_before_parting(graph)
        assert order == []
    assert order == ["reset", "parted"]


def test_ranks_evaluate_every_image_once():
    images = load_dataset("digits", "data", "test").limit(61)
    config = load_recipe("digits").augment
    parts = [EvalLoader(images, config, batch_size=8, rank=rank, world=2) for rank in range(2)]
    seen = [index for loader in parts for batch in loader for index in batch.indices.tolist()]
    assert sorted(seen) == list(range(61))
