"""Captured steps, teachers and loaders on their streams, on the stand-in of tests/fake_cuda.py."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import distributed as dist

from lgfast.assembly.run import train_run
from lgfast.config import DistillConfig, StepConfig, replace
from lgfast.data import build_train_loader, load_dataset
from lgfast.data.ahead import loading_stream
from lgfast.data.batch import Batch
from lgfast.data.resident_loader import ResidentLoader
from lgfast.guidance import GuidedStudent
from lgfast.models import create_model
from lgfast.optim.build import DeviceSGD, set_learning_rate
from lgfast.records.checkpoint import CheckpointStore
from lgfast.runtime import ranks
from lgfast.runtime.interrupt import InterruptFlag
from lgfast.spec.augment import AugmentSpec
from lgfast.step import TrainMeter, TrainStep
from lgfast.step.graph import capture_stream
from lgfast.sweep import probe
from lgfast.sweep.group import run_group
from lgfast.training.lane import NonFiniteLossError
from tests.fake_cuda import CaptureError, Race, fake_cuda
from tests.runs import StopAt, metrics, small_loop, tiny_config
from tests.step.test_step import BATCH, batches, build, parameters, train

STEPS = 6  # three eager ones, the capture, two replays


@pytest.fixture
def cuda(monkeypatch):
    with fake_cuda(monkeypatch) as cuda:
        yield cuda


# ---- the same numbers, with nothing left to chance -------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"precision": "bf16", "clip_norm": 1.0, "ema_decay": 0.9, "fused_layers": "on"},
        {"precision": "fp16-amp", "accumulate": 2},
        {"precision": "bf16", "accumulate": 2, "streams": "off"},
        {"distill": DistillConfig("soft", 2.0), "bn": "running"},
        {"optimizer": "sgd", "precision": "fp16-amp", "clip_norm": 1.0},
        {"optimizer": "sgd", "precision": "bf16", "ema_decay": 0.9},
    ],
    ids=str,
)
def test_replays_equal_eager_steps(monkeypatch, options):
    expected = build(**options)
    losses = train(expected, STEPS)
    with fake_cuda(monkeypatch) as cuda:
        step = build(graph="on", **options)
        assert train(step, STEPS) == losses
        assert train(build(graph="off", **options), STEPS) == losses
        assert train(build(graph="on", **options), STEPS, torch.cuda.synchronize) == losses
    assert len(cuda.graphs) == 2
    assert all(torch.equal(a, b) for a, b in zip(parameters(step), parameters(expected), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(step.model.parameters(), expected.model.parameters(), strict=True))


@pytest.fixture
def twin(monkeypatch):
    """A second rank that does the same: sums over the ranks are twice this one's. Lists the sizes of the sums."""
    sizes = []

    def all_reduce(values, operation=dist.ReduceOp.SUM):
        if operation == dist.ReduceOp.SUM:
            sizes.append(values.numel())
            values.mul_(2)

    monkeypatch.setattr(ranks, "world", lambda: 2)
    monkeypatch.setattr(ranks, "backend", lambda: "nccl")
    monkeypatch.setattr(ranks, "distribute", lambda module: module)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    return sizes


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])  # the second one halves its steps where an exchange is missing
def test_a_replay_exchanges_the_gradients_of_the_ranks(monkeypatch, twin, optimizer):
    options = {"optimizer": optimizer, "precision": "bf16", "clip_norm": 1.0}
    expected = build(graph="off", **options)
    losses = train(expected, STEPS)
    num_gradients = sum(p.numel() for p in expected.student.parameters())
    assert twin.count(num_gradients) == STEPS
    twin.clear()
    with fake_cuda(monkeypatch) as cuda:
        step = build(**options)
        assert train(step, STEPS) == losses
    assert len(cuda.graphs) == 1
    assert twin.count(num_gradients) == 3 + 1  # in eager steps and the capture; the others are replayed
    assert all(torch.equal(a, b) for a, b in zip(parameters(step), parameters(expected), strict=True))


@pytest.mark.parametrize(
    ("backend", "options", "reason"),
    [
        ("gloo", {"precision": "bf16"}, "gloo exchanges the gradients on the host"),
        ("nccl", {"precision": "fp32"}, "during the backward pass .precision=bf16 does after it"),
        ("nccl", {"precision": "bf16", "bn": "synced"}, "teacher.bn=batch and running do not"),
    ],
)
def test_an_exchange_that_cannot_be_captured_leaves_the_step_eager(cuda, monkeypatch, twin, backend, options, reason):
    monkeypatch.setattr(ranks, "backend", lambda: backend)
    assert build(**options).graph is None
    with pytest.raises(ValueError, match=f"step.graph: .*{reason}"):
        build(graph="on", **options)


@pytest.mark.parametrize("options", [{}, {"distill": DistillConfig("soft", 2.0), "bn": "running"}], ids=str)
def test_compiled_student_and_teacher_are_captured(counted_compiles, monkeypatch, options):
    losses = train(build(**options), STEPS)
    with fake_cuda(monkeypatch) as cuda:
        assert train(build(graph="on", compile="on", **options), STEPS) == losses
    assert (len(cuda.graphs), counted_compiles.frame_count) == (1, 2)


def trained_teacher(graph):
    """State of a CNN, BatchNorm statistics included, after some steps."""
    torch.manual_seed(0)
    student = GuidedStudent(create_model("cifar_resnet8", 5))
    optimizer = DeviceSGD([{"params": list(student.parameters())}], lr=0.1, momentum=0.9)
    train(TrainStep(student, None, optimizer, TrainMeter("cpu"), options=StepConfig(graph=graph)), STEPS)
    return student.state_dict()


def test_replays_move_the_statistics_of_batch_norm(monkeypatch):
    expected = trained_teacher("off")
    with fake_cuda(monkeypatch) as cuda:
        state = trained_teacher("on")
    assert cuda.graphs and state["model.bn1.num_batches_tracked"] == STEPS
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def interleaved(graph, device="cpu"):
    """Losses of two students in turns, on batches of two shapes, while rates and weights change."""
    steps, found = [build(graph=graph, drop_path_rate=rate, device=device) for rate in (0.1, 0.3)], []
    for number, batch in enumerate(batches(8, device)):
        for step in steps:
            set_learning_rate(step.optimizer, 1e-3 / (1 + number))
            step.objective.guidance_weight.fill_(number)
            found += train_on(step, batch) + train_on(step, Batch(*(x[: BATCH // 2] for x in batch if x is not None)))
    return found


def train_on(step, batch):
    step(batch)
    losses = [step.meter.read(0)["loss"]]
    step.meter.reset(0)
    return losses


def test_graphs_of_one_pool_leave_each_other_alone(monkeypatch):
    expected = interleaved("off")
    with fake_cuda(monkeypatch) as cuda:
        assert interleaved("on") == expected
    assert len(cuda.graphs) == 4
    assert len({graph.pool() for graph in cuda.graphs}) == 1


@pytest.mark.gpu
def test_graphs_of_one_pool_leave_each_other_alone_on_the_gpu():
    assert interleaved("on", "cuda") == interleaved("off", "cuda")


@pytest.mark.gpu
def test_a_second_student_needs_no_room_for_activations_of_its_own():
    (batch,) = batches(1, "cuda")
    large = Batch(*(x.repeat_interleave(512, 0) for x in batch if x is not None))
    steps, reserved = [build(device="cuda", graph="on") for _ in range(2)], [reserved_bytes()]
    for step in steps:
        for _ in range(4):
            step(large)
        reserved.append(reserved_bytes())
    assert reserved[2] - reserved[1] < 0.5 * (reserved[1] - reserved[0])


def reserved_bytes():
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved()


RUNS = {
    "live": {"step.ema_decay": 0.9, "log.save_every_steps": 3},
    "cached": {"teacher.targets": "cached", "data.views": 2, "teacher.bn": "running", "precision": "bf16"},
    "offline": {"teacher.targets": "offline", "augment.weak": "false", "optim.per_step": "true"},
    "mixed": {"augment.mixup_alpha": 0.8, "augment.cutmix_alpha": 1.0},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_on_streams_and_graphs_equals_one_without(monkeypatch, tmp_path, name):
    config = tiny_config(tmp_path, **RUNS[name])
    train_run(config)
    own = replace(config, {"run_dir": str(tmp_path / "own")})
    with fake_cuda(monkeypatch) as cuda:
        with pytest.raises(Exception, match="stopped and saved"):
            train_run(own, interrupt=StopAt(9))
        train_run(own, resume=True)
    assert cuda.graphs
    assert metrics(own.run_dir) == metrics(config.run_dir)


@pytest.mark.parametrize("compiled", ["off", "on"])
def test_a_group_on_streams_and_graphs_equals_one_without(counted_compiles, monkeypatch, tmp_path, compiled):
    base = tiny_config(tmp_path, **{"data.seed": 5, "epochs": 2})
    variants = {"a": {}, "b": {"seed": 7, "model.drop_path_rate": 0.4, "optim.lr": 1e-3}, "c": {"guidance.weight": 0}}
    configs = [
        [
            replace(base, own | {"run_dir": str(tmp_path / place / name), "step.compile": option})
            for name, own in variants.items()
        ]
        for place, option in (("plain", "off"), ("graphs", compiled))
    ]
    run_group(configs[0], InterruptFlag())
    with fake_cuda(monkeypatch) as cuda:
        run_group(configs[1], InterruptFlag())
    assert len(cuda.graphs) == len(variants)
    assert counted_compiles.frame_count == (len(variants) + 1 if compiled == "on" else 0)  # one teacher for all
    for plain, own in zip(*configs, strict=True):
        assert metrics(own.run_dir) == metrics(plain.run_dir)


def test_the_prediction_of_a_sweep_times_replays_alone(cuda, monkeypatch, tmp_path):
    graphs = []

    def look_at_the_clock():
        graphs.append(len(cuda.graphs))
        return float(len(graphs))

    monkeypatch.setattr(probe, "time", SimpleNamespace(perf_counter=look_at_the_clock))
    config = tiny_config(tmp_path, **{"data.seed": 0})
    probe.measure([config, replace(config, {"seed": 2})])
    assert graphs == [2] * 4  # of the steps and of the evaluation: when the clock starts, and when it stops


# ---- log lines ------------------------------------------------------------------------------------------------------


def unguided(tmp_path, **changes):
    return tiny_config(tmp_path, **{"guidance.weight": 0, "augment.teacher_size": 0} | changes)


def test_a_log_line_waits_for_no_step_after_the_line_before(cuda, monkeypatch, tmp_path):
    loop, stream = small_loop(unguided(tmp_path, **{"log.every_steps": 3})), torch.cuda.current_stream()
    (lane,) = loop.lanes
    log_step, seen = lane.log_step, [0]

    def watched():
        waits, enqueued, known = cuda.num_waits, stream.clock[stream], cuda.host[stream]
        log_step()
        assert cuda.num_waits == waits  # nothing is read from the device itself
        if lane.progress.step % 3 == 0:
            assert cuda.host[stream] <= max(seen[-1], known) < enqueued
            seen.append(stream.clock[stream])

    lane.log_step = watched
    loop.run()
    assert len(seen) == 1 + 6
    assert [row["step"] for row in metrics(tmp_path / "run") if row["kind"] == "train"] == [3, 6, 9, 12, 15, 18]


@pytest.mark.parametrize("every", [1, 3, 50])
def test_a_broken_loss_is_named_and_not_kept_when_it_is_known_late(cuda, tmp_path, every):
    config = unguided(tmp_path, **{"log.every_steps": every, "log.save_every_steps": 5, "step.graph": "off"})
    loop = small_loop(config)
    (lane,) = loop.lanes
    run = lane.step.run

    def poisoned(batch):
        run(batch._replace(images=batch.images * (float("nan") if lane.progress.step == 8 else 1)))

    lane.step.run = poisoned
    loop.run()
    with pytest.raises(NonFiniteLossError, match=r"not finite at step 8 \(.*step_00000006"):
        lane.raise_error()
    weights, state = CheckpointStore(tmp_path / "run").load_newest()
    assert state["progress"]["step"] == 6
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    assert all(row["step"] <= 8 and row["loss"] is not None for row in metrics(tmp_path / "run"))


# ---- stopping and failing -------------------------------------------------------------------------------------------


def test_the_step_comes_before_the_loader(cuda):
    """A lower number is a higher priority; a graph's kernels keep the priority of the stream of their capture."""
    device = torch.device("cuda")
    loading = loading_stream(device).priority
    assert capture_stream(0).priority < loading and build().teacher._stream.priority < loading


def test_a_loader_that_is_stopped_early_leaves_no_work_behind(cuda):
    loader = build_train_loader("resident", load_dataset("digits"), AugmentSpec(image_size=8, teacher_size=0), 16)
    for batch in loader:
        del batch
        break
    torch.zeros(3)  # may get the memory of the indices, from which the next batch is being made


def digits_batches(limit_bytes):
    spec = AugmentSpec(image_size=8, teacher_size=4)
    loader = ResidentLoader(load_dataset("digits"), spec, batch_size=64, seed=3, limit_bytes=limit_bytes)
    return loader, [[tensor.clone() for tensor in batch if tensor is not None] for batch in loader]


def test_images_that_do_not_fit_are_sent_one_batch_ahead(monkeypatch):
    _, expected = digits_batches(None)
    with fake_cuda(monkeypatch):
        loader, found = digits_batches(0)
    assert not loader.images.is_resident and len(found) > 10
    for batch, own in zip(expected, found, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, own, strict=True))


def test_the_host_stays_near_the_gpu(cuda):
    """What is freed before the GPU has used it cannot be reused, so a host far ahead would fill the memory."""
    loader = build_train_loader("resident", load_dataset("digits"), AugmentSpec(image_size=8, teacher_size=0), 16)
    stream, used = torch.cuda.current_stream(), []
    for batch in loader:
        if len(used) >= 2:
            assert used[-2] <= cuda.host[stream] < used[-1]
        batch.images.sum()
        used.append(stream.clock[stream])
    assert len(used) == len(loader) > 10


def test_an_error_in_a_capture_is_the_one_that_is_seen(cuda, monkeypatch):
    step = build(graph="on")
    train(step, 3)

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(GuidedStudent, "forward", fail)
    with pytest.raises(torch.OutOfMemoryError):
        train(step, 1)


def test_a_step_that_cannot_be_captured_says_why(cuda, monkeypatch):
    step, forward = build(graph="on"), GuidedStudent.forward

    def reads_back(student, images, targets, weight):
        return forward(student, images * images.max().item(), targets, weight)

    monkeypatch.setattr(GuidedStudent, "forward", reads_back)
    train(step, 3)
    stream = torch.cuda.current_stream()
    with pytest.raises(ValueError, match=r"step.graph: .* captured: aten._local_scalar_dense.*; use step.graph=off"):
        train(step, 1)
    assert torch.cuda.current_stream() is stream


def test_a_step_that_nobody_holds_is_freed_at_once(cuda):
    step = build(graph="on")
    train(step, 5)
    held = [weakref.ref(part) for part in (step, step.graph, step.optimizer, step.student.model)]
    gc.disable()
    try:
        del step
        assert [ref() for ref in held] == [None] * len(held)
    finally:
        gc.enable()


# ---- the stand-in sees what it is for -------------------------------------------------------------------------------


def use_elsewhere(x, waits):
    """Write x on another stream, which `waits` for the current one or not."""
    stream = torch.cuda.Stream()
    if waits:
        stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        x.add_(1)
    return stream


def test_unordered_uses_of_memory_are_races(cuda):
    x = torch.zeros(3)
    stream = use_elsewhere(x, waits=True)
    with pytest.raises(Race, match="nothing orders"):
        x.sum()
    torch.cuda.current_stream().wait_stream(stream)
    x.sum()
    with pytest.raises(Race, match="nothing orders"):
        use_elsewhere(x, waits=False)


def test_numbers_read_before_their_copy_is_waited_for_are_a_race(cuda):
    on_host = torch.ones(3).to("cpu", non_blocking=True, copy=True)
    copied = torch.cuda.current_stream().record_event()
    for read in (on_host.tolist, on_host[0].item):
        with pytest.raises(Race, match="the host reads"):
            read()
    assert not copied.query()
    copied.synchronize()
    assert copied.query() and on_host.tolist() == [1, 1, 1] and on_host[0].item() == 1
    assert cuda.num_waits == 0
    torch.ones(3).tolist()
    assert cuda.num_waits == 1


@pytest.mark.parametrize("remedy", ["none", "wait", "record"])
def test_memory_freed_under_another_stream_is_a_race(cuda, remedy):
    x = torch.zeros(3)
    stream = use_elsewhere(x, waits=True)
    if remedy == "wait":
        torch.cuda.current_stream().wait_stream(stream)
    if remedy == "record":
        x.record_stream(stream)
    del x
    if remedy != "none":
        torch.zeros(3)
        return
    with pytest.raises(Race, match="memory is reused"):
        torch.zeros(3)


def test_a_capture_freezes_what_the_host_decides_and_takes_no_step(cuda):
    x, graph, rate = torch.zeros(()), torch.cuda.CUDAGraph(), 2.0
    with torch.cuda.graph(graph, stream=torch.cuda.Stream()):
        x.add_(rate)
    assert x == 0
    rate = 5.0
    graph.replay()
    graph.replay()
    assert x == 4


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda x: x.item(), "reads back"),
        (lambda x: use_elsewhere(x, waits=True), "not joined"),
        (lambda x: use_elsewhere(x, waits=False), "outside the capture"),
    ],
)
def test_what_cuda_cannot_capture_is_refused(cuda, work, message):
    x, stream = torch.zeros(()), torch.cuda.Stream()
    with pytest.raises(CaptureError, match=message), torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream):
        work(x)
