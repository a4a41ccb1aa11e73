"""Time feature_mse against the same loss composed in PyTorch, at the guided shapes of each student.

    python -m benchmarks.bench_feature_mse [--providers torch,compile,lgfast] [--models deit_tiny] [--batch 32]

Providers: torch is F.interpolate of both maps and F.mse_loss, pair by pair; compile is the same under torch.compile. On
a GPU each mode is a CUDA graph over enough copies of the maps to exceed twice the L2 cache, and the host's time is not
counted. images_per_s: batch / median time. gb_per_s: the bytes of both maps, read once (fwd), and of the gradient,
written once (both), over the median time. copy_share: gb_per_s over the bandwidth of a device copy.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks import ceilings, harness, row_file
from benchmarks.cuda_calls import captured
from lgfast.ops import feature_mse

TEACHER_MAPS = [(16, 32), (32, 16), (64, 8)]  # channels, h = w
STUDENT_SIDES = {"deit_tiny": (14, 14, 14), "pit_ti": (27, 14, 7), "pvt_tiny": (56, 28, 7), "cvt_13": (56, 14, 14)}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MODES = ("fwd", "both")


def composed(student, teacher):
    """Compute the loss as users of PyTorch write it."""
    loss = 0.0
    for s, t in zip(student, teacher, strict=True):
        side = round(s.shape[1] ** 0.5)
        size = (max(side, t.shape[2]), max(side, t.shape[3]))
        maps = F.interpolate(s.transpose(1, 2).unflatten(2, (side, side)), size, mode="bilinear", align_corners=False)
        target = F.interpolate(t, size, mode="bilinear", align_corners=False)
        loss = loss + F.mse_loss(maps.float(), target.float())
    return loss


PROVIDERS: dict[str, Callable] = {
    "torch": composed,
    "compile": torch.compile(composed, fullgraph=True, dynamic=False),
    "lgfast": feature_mse,
}


def make_maps(model: str, batch: int, dtype: torch.dtype, device: torch.device):
    sides = STUDENT_SIDES[model]
    student = [torch.randn(batch, n * n, c) for n, (c, _) in zip(sides, TEACHER_MAPS, strict=True)]
    teacher = [torch.randn(batch, c, n, n).to(memory_format=torch.channels_last) for c, n in TEACHER_MAPS]
    student = [maps.to(device, dtype).requires_grad_() for maps in student]
    return student, [maps.to(device, dtype) for maps in teacher]


def check(call: Callable, student, teacher) -> None:
    """Check a provider's loss and gradients against those in float64, within the rounding of the maps' dtype."""
    exact = [maps.detach().double().requires_grad_() for maps in student]
    truth = composed(exact, [maps.double() for maps in teacher])
    loss = call(student, teacher)
    # resizing, difference, rounding of the result; float32 positions up to 56 add up to 56 roundings to the weights
    bound = 4 * torch.finfo(student[0].dtype).eps + 64 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(loss.double(), truth, rtol=bound, atol=0, check_dtype=False)
    for grad, true in zip(torch.autograd.grad(loss, student), torch.autograd.grad(truth, exact), strict=True):
        torch.testing.assert_close(grad.double(), true, rtol=bound, atol=2 * bound * true.abs().max().item())


def run_mode(call: Callable, mode: str, copies: Sequence) -> None:
    """Compute the loss of every copy of the maps, and in mode `both` the gradients of its student maps."""
    for student, teacher in copies:
        if mode == "both":
            torch.autograd.grad(call(student, teacher), student)
        else:
            with torch.no_grad():
                call(student, teacher)


def num_bytes(student, teacher, mode: str) -> int:
    """Count the bytes of reading every map once and, for `both`, writing every gradient once."""
    passes = {"fwd": 1, "both": 2}[mode]
    return sum(m.nbytes for m in teacher) + passes * sum(m.nbytes for m in student)


def bench(
    model: str,
    providers: list[str],
    batch: int,
    dtype_name: str,
    device: torch.device,
    rounds: int,
    limits: ceilings.Ceilings,
):
    maps = make_maps(model, batch, DTYPES[dtype_name], device)
    providers = harness.agreeing(providers, lambda name: check(PROVIDERS[name], *maps), model)
    is_cuda = device.type == "cuda"
    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size if is_cuda else 0
    num_copies = 1 + 2 * l2_bytes // num_bytes(*maps, "fwd")
    copies = [maps, *(make_maps(model, batch, DTYPES[dtype_name], device) for _ in range(num_copies - 1))]
    for mode in MODES:
        calls = {}
        for name in providers:
            run = partial(run_mode, PROVIDERS[name], mode, copies)
            make = lambda run=run: captured(lambda: run) if is_cuda else run  # noqa: E731
            calls[name] = harness.ready(make, fragile=name == "compile")
            calls[name].eager = partial(run_mode, PROVIDERS[name], mode, copies[:1])
        timings = harness.time_interleaved(calls, device, rounds, fragile=["compile"], queued=True)
        timings = {name: timing.per_call(num_copies) for name, timing in timings.items()}
        for name, timing in timings.items():
            yield {
                "op": "feature_mse",
                "provider": name,
                "mode": mode,
                "dtype": dtype_name,
                "shape": f"{model} B={batch}",
                **vars(timing),
                "images_per_s": timing.per_s(batch),
                **limits.shares(timing, num_bytes(*maps, mode)),
            }


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser(__doc__, rounds=50)
    harness.add_names(parser, "--providers", PROVIDERS, "torch,lgfast")
    harness.add_names(parser, "--models", STUDENT_SIDES)
    harness.add_names(parser, "--dtypes", DTYPES, "float32,bfloat16")
    parser.add_argument("--batch", type=harness.count, help="default: 128 on CUDA, 32 on CPU")
    options = parser.parse_args(argv)
    device = harness.chosen_device(options)
    batch = options.batch or (128 if device.type == "cuda" else 32)
    limits = ceilings.load(options.ceilings, device)
    torch.manual_seed(0)
    torch.zeros(7 * 2**20)  # once freed, it makes malloc keep memory between calls, as in any training process
    providers = options.providers
    rows = (
        row
        for model in options.models
        for dtype in options.dtypes
        for row in harness.survive(
            bench(model, providers, batch, dtype, device, options.rounds, limits),
            op="feature_mse",
            dtype=dtype,
            shape=f"{model} B={batch}",
        )
    )
    row_file.record("feature_mse", rows, device, options.out)


if __name__ == "__main__":
    main()
