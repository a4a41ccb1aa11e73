"""The whole training step against plain PyTorch, and what each of its stages costs.

    python -m benchmarks.bench_train_step [--providers paper,amp,lgfast,loop] [--shapes deit_tiny_224] [--batch 128]

paper: the composition of the paper's code, eager float32. amp: a careful eager step (in bf16 under autocast), SDPA and
fused AdamW. compile: the same under torch.compile (max-autotune on CUDA); compile-graph: that as one CUDA graph.
bare: lgfast's own arithmetic written inline, without step object, meters and loop; loop: the same through the trainer's
loop, its meters and log lines. lgfast-compile, lgfast-fused-layers: with that option of the step. On a CPU each runs in
a process of its own, as its users would (lgfast's with its trainer's allocator setting), and is timed at the second
call of a turn. Throughput: batch / median time. cpu_ms: median processor time of a call on the CPU, all threads
together, which other programs on the machine disturb less. Stages run alone, one after the other, on a GPU as a graph
each; `rest` is what the step takes beyond their sum, negative where they overlap. launches: operations that one call
dispatches, a kernel each at least; replaying a graph is one, and copying the batch into it some.
matmul_share: the multiplications of the paper's step (counted) over the median time, as a share of a large matrix
product; copy_share: the bytes of a fused step (DeiT-Ti in bfloat16 only), as a share of a device copy.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import ceilings, harness, row_file
from benchmarks.cuda_calls import captured, waits
from benchmarks.peers import GUIDANCE_WEIGHT, PEERS
from benchmarks.remote import RemoteCall
from benchmarks.train_setup import SHAPES, Setup
from lgfast.allocator import keep_freed_memory
from lgfast.config import Config, LogConfig, replace
from lgfast.data.batch import Batch
from lgfast.guidance.teacher import TeacherTargets
from lgfast.interrupt import InterruptFlag
from lgfast.loop import Trainer
from lgfast.step import TrainMeter
from lgfast.step.precision import auto_precision

# The bytes a fused step moves per image, performance.md 4 (DeiT-Ti at 224 in bfloat16); other shapes have no figure.
ROOFLINE_BYTES = {"student_fwd": 29.1e6, "backward": 48.3e6, "teacher": 2.7e6, "guidance": 0.9e6, "step": 81.0e6}


def bare_call(setup: Setup, precision: str) -> Callable[[], object]:
    """The arithmetic of TrainStep inline."""
    step = setup.train_step(precision)
    student, teacher, optimizer, batch = step.weights or step.student, step.teacher, step.optimizer, setup.batch

    def call():
        targets = None if teacher is None else teacher.start(batch)
        optimizer.zero_grad()
        logits, guidance = student(batch.images, targets)
        loss = F.cross_entropy(logits.float(), batch.labels)
        loss = loss if guidance is None else loss + GUIDANCE_WEIGHT * guidance
        loss.backward()
        optimizer.step()
        return loss.detach()

    return call


def loop_call(setup: Setup, precision: str) -> Callable[[], object]:
    """One batch through the trainer's loop, with its meters, its schedule and a log line every 50 steps."""
    step, batch = setup.train_step(precision), setup.batch
    config = replace(Config(log=LogConfig(tensorboard=False)), {"optim.per_step": True, "data.batch_size": 1})
    folder = tempfile.TemporaryDirectory()
    loader = EndlessLoader(batch)
    trainer = Trainer(config, Path(folder.name), step.student, step, loader, [], {}, InterruptFlag())
    trainer.begin_epoch()

    def call(folder=folder):
        trainer.train_batch(next(loader))

    call.eager = partial(step.run, batch)
    return call


class EndlessLoader:
    """One batch, for ever; an epoch too long to end."""

    def __init__(self, batch: Batch) -> None:
        self.batch, self.batch_size = batch, len(batch.images)

    def __len__(self) -> int:
        return 1 << 40

    def __next__(self) -> Batch:
        return self.batch

    def set_epoch(self, epoch: int) -> None:
        """Every epoch is the same."""


STEPS = {  # lgfast's own step in its variants: options of StepConfig
    "lgfast": {},
    "lgfast-compile": {"compile": "on"},
    "lgfast-fused-layers": {"fused_layers": "on"},
    "lgfast-fused-layers-compile": {"fused_layers": "on", "compile": "on"},
}
PROVIDERS = (*PEERS, "bare", "loop", *STEPS)


def make_call(provider: str, setup: Setup, precision: str) -> Callable[[], object]:
    """A call that trains once; returns the loss where the provider gives it."""
    batch = setup.batch
    if provider in PEERS:
        peer = PEERS[provider](setup.student, setup.teacher, setup.shape.layers, precision)
        inputs = (batch.images, batch.teacher_images, batch.labels)
        call = partial(peer, *inputs)
        call.eager = partial(getattr(peer, "eager", peer), *inputs)
        return call
    if provider == "bare":
        return bare_call(setup, precision)
    if provider == "loop":
        return loop_call(setup, precision)
    step = setup.train_step(precision, **STEPS[provider])

    call = partial(step, batch)
    call.eager = partial(step.run, batch)  # needs the memory that a graph keeps for itself
    return call


def make_alone(provider: str, arguments: tuple, precision: str) -> Callable[[], object]:
    """`make_call` in a process of the provider's own; `arguments` are those of Setup."""
    if provider not in PEERS:
        keep_freed_memory()  # as a run of lgfast does
    return make_call(provider, Setup(*arguments), precision)


def check(setup: Setup, precision: str) -> None:
    """The step's first loss is that of the paper's composition."""
    expected = make_call("paper", setup, "fp32")()
    step = setup.train_step(precision)
    step(setup.batch)
    bound = 1e-5 if precision == "fp32" else 2**-6  # float32 sums in another order; a few bfloat16 roundings
    torch.testing.assert_close(
        torch.tensor(step.meter.read(TrainMeter.WINDOW)["loss"]), expected.cpu(), rtol=bound, atol=0, check_dtype=False
    )


class Counts(NamedTuple):
    """Of one call."""

    launches: int
    syncs: int  # times the host waits for the device


class Dispatched(TorchDispatchMode):
    """Counts operations (views and host reads apart): launches at least, eagerly."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.launches = self.syncs = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        reads = func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero")
        self.syncs += (
            reads and args[0].device.type == self.device.type
        )  # step counts on the host are read without waiting
        self.launches += not func.is_view and func.overloadpacket.__name__ not in ("_local_scalar_dense", "detach")
        return func(*args, **kwargs or {})


def count(call: Callable[[], object], device: torch.device) -> Counts:
    """Of one call, not the first; backward included."""
    call()
    with Dispatched(device) as dispatched:
        call()
    replays = getattr(getattr(call, "func", None), "graph", None) is not None  # one launch, unseen by the dispatcher
    syncs = waits(call) if device.type == "cuda" else dispatched.syncs
    return Counts(dispatched.launches + replays, syncs)


def count_flops(name: str, guided: bool, device: torch.device) -> float:
    """Multiplications and additions of one image's matrix products and convolutions, forward and backward."""
    batch = 2
    paper = make_call("paper", Setup(name, batch, guided, device), "fp32")
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # attention as products
        paper()
    return counter.get_total_flops() / batch


def stage_calls(setup: Setup, precision: str) -> dict[str, Callable[[], object]]:
    """The parts of the step, each alone on inputs that are ready; on a GPU replayed from graphs, as the step is."""
    step, batch = setup.train_step(precision), setup.batch
    student = step.weights or step.student
    targets = None if step.teacher is None else TeacherTargets(step.teacher.start(batch).wait())

    def forward():
        logits, guidance = student(batch.images, targets)
        loss = F.cross_entropy(logits.float(), batch.labels)
        return loss if guidance is None else loss + GUIDANCE_WEIGHT * guidance

    def forward_backward():
        step.optimizer.zero_grad()
        forward().backward()

    def make_update():
        forward_backward()
        gradients = [leaf.grad for leaf in step.optimizer.leaves]  # a graph reads these
        return lambda kept=gradients: step.optimizer.step()

    makes = {"forward": lambda: forward, "forward_backward": lambda: forward_backward, "optimizer": make_update}
    makes["student_fwd"] = lambda: lambda: student(batch.images, None)
    if step.teacher is not None:
        makes["teacher"] = lambda: lambda: step.teacher.start(batch).wait()
    is_cuda = setup.device.type == "cuda"
    calls = {stage: captured(make) if is_cuda else make() for stage, make in makes.items()}
    return calls | {"step": partial(step, batch)}


def has_figure(name: str, precision: str) -> bool:
    """Whether ROOFLINE_BYTES are those of the shape."""
    return (name, precision) == ("deit_tiny_224", "bf16")


def bench_stages(name: str, batch: int, precision: str, device: torch.device, rounds: int, limits: ceilings.Ceilings):
    """Rows of microseconds per image by stage."""
    setup = Setup(name, batch, True, device)
    timings = harness.time_interleaved(stage_calls(setup, precision), device, rounds)
    shape = f"{name} B={batch}"
    about = {"op": "train_step", "provider": "lgfast", "mode": "stage", "dtype": precision, "shape": shape}
    if errors := {timing.error for timing in timings.values() if timing.error}:
        yield {**about, "error": errors.pop()}
        return
    ms = {stage: timing.median_ms for stage, timing in timings.items()}
    stages = {
        "teacher": ms["teacher"],
        "student_fwd": ms["student_fwd"],
        "guidance": ms["forward"] - ms["student_fwd"],
        "backward": ms["forward_backward"] - ms["forward"],
        "optimizer": ms["optimizer"],
    }
    stages["rest"] = ms["step"] - sum(stages.values())
    for stage, value in {**stages, "step": ms["step"]}.items():
        figure = ROOFLINE_BYTES.get(stage) if has_figure(name, precision) else None
        shares = limits.shares(harness.Timing(value), figure and figure * batch)
        yield {**about, "stage": stage, "median_ms": value, "us_per_image": value / batch * 1e3, **shares}


def processor_ms(calls: dict[str, RemoteCall], rounds: int) -> dict[str, float]:
    """Median processor time of each call, in turns."""
    samples = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()
            samples[name].append(call.processor_ms)
    return {name: statistics.median(values) for name, values in samples.items()}


def bench(
    name: str,
    providers: list[str],
    batch: int,
    guided: bool,
    precision: str,
    device: torch.device,
    rounds: int,
    limits: ceilings.Ceilings,
):
    """Rows of one shape, all providers timed in turns."""
    arguments = (name, batch, guided, device)
    setup = Setup(*arguments)
    check(setup, precision)
    num_flops = count_flops(name, guided, device) * batch
    num_bytes = ROOFLINE_BYTES["step"] * batch if guided and has_figure(name, precision) else None
    local = {p: partial(make_call, p, setup, precision) for p in providers}
    is_remote = device.type == "cpu"
    makes = {p: partial(RemoteCall, partial(make_alone, p, arguments, precision)) for p in providers}
    calls = {p: harness.ready(make) for p, make in (makes if is_remote else local).items()}
    timings = harness.time_interleaved(calls, device, rounds, fragile=PEERS, untimed=int(is_remote))
    calls = {provider: call for provider, call in calls.items() if not timings[provider].error}
    cpu_ms = processor_ms(calls, rounds) if is_remote else {}
    for call in calls.values() if is_remote else ():
        call.close()
    counted_calls = {p: local[p]() if is_remote else call for p, call in calls.items() if "compile" not in p}
    counts = {provider: count(call, device) for provider, call in counted_calls.items()}
    for provider, timing in timings.items():
        counted = counts.get(provider)
        yield {
            "op": "train_step",
            "provider": provider,
            "mode": "guided" if guided else "plain",
            "dtype": "fp32" if provider == "paper" else precision,
            "shape": f"{name} B={batch}",
            **vars(timing),
            "images_per_s": timing.per_s(batch),
            "cpu_ms": cpu_ms.get(provider),
            **limits.shares(timing, num_bytes, num_flops),
            "launches": counted and counted.launches,
            "host_syncs": counted and counted.syncs,
        }


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser(__doc__, rounds=20)
    harness.add_names(parser, "--providers", PROVIDERS, "paper,amp,bare,loop,lgfast")
    harness.add_names(parser, "--shapes", SHAPES, "deit_tiny_224")
    parser.add_argument(
        "--batch", type=harness.counts, help="sizes, comma-separated; default 128,256,512 on CUDA, 8 on CPU"
    )
    harness.add_names(parser, "--guidance", ("on", "off"))
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="default: bf16 where the device has it")
    parser.add_argument("--no-stages", action="store_true", help="whole steps only")
    options = parser.parse_args(argv)
    device = harness.chosen_device(options)
    limits = ceilings.load(options.ceilings, device)
    is_cuda = device.type == "cuda"
    batches = options.batch or ([128, 256, 512] if is_cuda else [8])
    precision = options.precision or auto_precision(device)
    providers, shapes = options.providers, options.shapes
    arguments = (precision, device, options.rounds)
    rows = (
        row
        for shape in shapes
        for batch in batches
        for guidance in options.guidance
        for row in harness.survive(
            bench(shape, providers, batch, guidance == "on", *arguments, limits),
            op="train_step",
            mode="guided" if guidance == "on" else "plain",
            shape=f"{shape} B={batch}",
        )
    )
    row_file.record("train_step", rows, device, options.out)
    if not options.no_stages:
        pairs = [(shape, batch) for shape in shapes for batch in batches]
        stages = (row for pair in pairs for row in bench_stages(*pair, *arguments, limits))
        row_file.record("train_step_stages", harness.survive(stages, op="train_step"), device, options.out)


if __name__ == "__main__":
    main()
