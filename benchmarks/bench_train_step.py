"""Time the whole training step against plain PyTorch, and each of its stages.

    python -m benchmarks.bench_train_step [--providers paper,amp,lgfast,loop] [--shapes deit_tiny_224] [--batch 128]

Providers:

    paper           the step as the paper's code composes it, eager float32
    amp             a careful eager step (in bf16 under autocast), with SDPA and fused AdamW
    compile         amp under torch.compile (max-autotune on CUDA); compile-graph: that as one CUDA graph
    lgfast          lgfast's step; lgfast-compile, lgfast-fused-layers: with that option of the step
    bare            lgfast's arithmetic written inline, without step object, meters and loop
    loop            lgfast's step through the trainer's loop, with its meters and log lines

On a CPU each provider runs in a process of its own, as its users would run it (lgfast's with its trainer's allocator
setting), and the second call of a turn is timed.

Columns:

    images_per_s    batch / median time
    cpu_ms          median processor time of a call on the CPU, all threads together, which other programs disturb less
    launches        operations that one call dispatches, each at least one kernel; replaying a graph counts as one, and
                    copying the batch into it as some
    matmul_share    the counted multiplications of the paper's step over the median time, as a share of a large matrix
                    product
    copy_share      the bytes of a fused step (DeiT-Ti in bfloat16 only), as a share of a device copy

Stages run alone, one after the other, on a GPU as a graph each. `rest` is the time of the step beyond their sum; it is
negative where stages overlap.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch.nn import functional as F

from benchmarks import ceilings, harness, row_file
from benchmarks.cuda_calls import captured
from benchmarks.peers import PEERS
from benchmarks.remote import RemoteCall
from benchmarks.step_calls import PROVIDERS, check, make_alone, make_call
from benchmarks.step_counts import count, count_flops
from benchmarks.train_setup import SHAPES, Setup
from lgfast.guidance.teacher import TeacherTargets
from lgfast.runtime.auto_precision import auto_precision

# The bytes that a fused step moves for an image, for DeiT-Ti at 224 in bfloat16; other shapes have no figure.
ROOFLINE_BYTES = {"student_fwd": 29.1e6, "backward": 48.3e6, "teacher": 2.7e6, "guidance": 0.9e6, "step": 81.0e6}


def stage_calls(setup: Setup, precision: str) -> dict[str, Callable[[], object]]:
    """Return the stages of the step, each alone on inputs that are ready; on a GPU as graphs, like the step."""
    step, batch = setup.train_step(precision), setup.batch
    student = step.precision
    targets = None if step.teacher is None else TeacherTargets(step.teacher.start(batch).wait())

    def forward():
        logits, guidance = student(batch.images, targets, step.objective.guidance_weight)
        loss = F.cross_entropy(logits.float(), batch.labels)
        return loss if guidance is None else loss + guidance.weighted

    def forward_backward():
        step.optimizer.zero_grad()
        student.backward(forward())

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
    """Whether ROOFLINE_BYTES are the bytes of this shape."""
    return (name, precision) == ("deit_tiny_224", "bf16")


def bench_stages(name: str, batch: int, precision: str, device: torch.device, rounds: int, limits: ceilings.Ceilings):
    """Yield rows of microseconds per image by stage."""
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
    """Measure each call's median processor time, in turns."""
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
    """Yield the rows of one shape; all providers are timed in turns."""
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
            "backend": counted and counted.attention,
        }


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser(__doc__, rounds=20)
    harness.add_names(parser, "--providers", PROVIDERS, "paper,amp,bare,loop,lgfast")
    harness.add_names(parser, "--shapes", SHAPES, "deit_tiny_224")
    parser.add_argument(
        "--batch", type=harness.counts, help="sizes, comma-separated; default 128,256,512 on CUDA, 8 on CPU"
    )
    harness.add_names(parser, "--guidance", ("on", "off"))
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="default: bf16 where it is faster on the device")
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
