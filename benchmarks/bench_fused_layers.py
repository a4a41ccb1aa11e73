"""Residual + drop path + LayerNorm and bias + GELU: lgfast's operations against torch.compile and eager PyTorch.

    python -m benchmarks.bench_fused_layers [--providers eager,compile,lgfast] [--shapes deit_tiny] [--batches 128,256]

Decides whether `step.fused_layers` is worth its default: an operation is kept where `both` beats compile on the GPU.
Inputs are the tokens of one block, [B, N, C] of the stream and [B, N, 4 C] of the MLP. On a GPU each mode is a CUDA
graph over as many copies of the inputs as exceed twice the L2 cache. copy_share: every tensor read or written once,
over the median time, as a share of a device copy. times_compile: compile's median time over the row's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import ceilings, harness
from benchmarks.cuda_calls import captured
from lgfast.ops import add_layer_norm, bias_gelu

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MODES = ("fwd", "both")
EPS = 1e-6


def eager_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, drop_scale: Tensor):
    y = residual + x * drop_scale[:, None, None]
    return y, F.layer_norm(y, weight.shape, weight, bias, EPS)


def eager_gelu(x: Tensor, bias: Tensor):
    return (F.gelu(x + bias),)


@dataclass(frozen=True)
class Op:
    """One operation: what it composes to, lgfast's form, and how many maps [B, N, C] each mode reads and writes."""

    eager: Callable
    lgfast: Callable
    width: int  # channels, in multiples of the stream's
    maps: dict[str, int]


OPS = {
    "add_layer_norm": Op(
        eager_norm,
        lambda x, residual, weight, bias, scale: add_layer_norm(x, residual, weight, bias, EPS, scale),
        1,
        {"fwd": 4, "both": 4 + 5},  # x, residual, y, out; dout, dy, y, dx, dresidual
    ),
    "bias_gelu": Op(eager_gelu, lambda x, bias: (bias_gelu(x, bias),), 4, {"fwd": 2, "both": 2 + 3}),
}
SHAPES = {"deit_tiny": (197, 192), "vit_small": (197, 384), "digits": (65, 64)}  # tokens, channels
PROVIDERS = ("eager", "compile", "lgfast")


def make_call(op: Op, provider: str) -> Callable:
    if provider == "compile":
        return torch.compile(op.eager, dynamic=False)
    return getattr(op, provider)


def make_inputs(name: str, batch: int, tokens: int, channels: int, dtype: torch.dtype, device: torch.device):
    """Arguments of the operation, parameters and maps with gradients, and the gradients of its results."""
    channels *= OPS[name].width
    x, dout = (torch.randn(batch, tokens, channels, dtype=dtype, device=device) for _ in range(2))
    weight, bias = (torch.randn(channels, dtype=dtype, device=device) for _ in range(2))
    if name == "bias_gelu":
        return [x.requires_grad_(), bias.requires_grad_()], [dout]
    leaves = [tensor.requires_grad_() for tensor in (x, torch.randn_like(x), weight, bias)]
    scale = torch.full((batch,), 0.9, device=device).bernoulli().div_(0.9).to(dtype)
    return [*leaves, scale], [torch.randn_like(dout), dout]


def run(call: Callable, inputs: Sequence[Tensor], douts: Sequence[Tensor], mode: str) -> list[Tensor]:
    """Results, and in mode `both` the gradients of everything that wants one."""
    if mode == "fwd":
        with torch.no_grad():
            return list(call(*inputs))
    outputs = call(*inputs)
    leaves = [tensor for tensor in inputs if tensor.requires_grad]
    return [*outputs, *torch.autograd.grad(outputs, leaves, douts)]


def check(call: Callable, name: str, tokens: int, channels: int, dtype: torch.dtype, device: torch.device) -> None:
    """Results and gradients of two samples are as exact as eager PyTorch's in the same dtype."""
    inputs, douts = make_inputs(name, 2, tokens, channels, dtype, device)
    wide = [tensor.detach().double().requires_grad_(tensor.requires_grad) for tensor in inputs]
    exact = run(OPS[name].eager, wide, [dout.double() for dout in douts], "both")
    plain = run(OPS[name].eager, inputs, douts, "both")
    for value, plain_value, true in zip(run(call, inputs, douts, "both"), plain, exact, strict=True):
        floor = 4 * torch.finfo(dtype).eps * true.abs().max().item()
        bound = 2 * (plain_value.double() - true).abs().max().item() + floor
        torch.testing.assert_close(value.double(), true, rtol=0, atol=bound)


def bench(
    name: str,
    shape: str,
    batch: int,
    dtype_name: str,
    providers: Sequence[str],
    device: torch.device,
    limits: ceilings.Ceilings,
    rounds: int,
) -> Iterator[dict]:
    op, (tokens, channels), dtype = OPS[name], SHAPES[shape], DTYPES[dtype_name]
    calls = {provider: make_call(op, provider) for provider in providers}
    good = harness.agreeing(calls, lambda p: check(calls[p], name, tokens, channels, dtype, device), f"{name} {shape}")
    calls = {provider: calls[provider] for provider in good}
    map_bytes = batch * tokens * channels * op.width * dtype.itemsize
    is_cuda = device.type == "cuda"
    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size if is_cuda else 0
    num_copies = 1 + 2 * l2_bytes // (op.maps["fwd"] * map_bytes)
    copies = [make_inputs(name, batch, tokens, channels, dtype, device) for _ in range(num_copies)]
    for mode in MODES:
        runs = {}
        for provider, call in calls.items():
            all_copies = lambda call=call, mode=mode: [run(call, *copy, mode) for copy in copies]  # noqa: E731
            make = lambda all_copies=all_copies: captured(lambda: all_copies) if is_cuda else all_copies  # noqa: E731
            runs[provider] = harness.ready(make, fragile=provider == "compile")
            runs[provider].eager = partial(run, call, *copies[0], mode)
        timings = harness.time_interleaved(runs, device, rounds, fragile=["compile"], queued=True)
        timings = {provider: timing.per_call(num_copies) for provider, timing in timings.items()}
        compiled = timings.get("compile")
        for provider, timing in timings.items():
            yield {
                "op": name,
                "provider": provider,
                "mode": mode,
                "dtype": dtype_name,
                "shape": f"{shape} B={batch}",
                **vars(timing),
                **limits.shares(timing, op.maps[mode] * map_bytes),
                "times_compile": timing.per_s(compiled.median_ms / 1e3) if compiled and not compiled.error else None,
            }


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser(__doc__, rounds=50)
    parser.add_argument("--providers", type=harness.names_of(PROVIDERS), default=",".join(PROVIDERS))
    parser.add_argument("--ops", type=harness.names_of(OPS), default=",".join(OPS))
    parser.add_argument(
        "--shapes", type=harness.names_of(SHAPES), help="of " + ", ".join(SHAPES) + "; default deit_tiny, on CPU digits"
    )
    parser.add_argument("--batches", type=harness.counts, help="default 128,256,512 on CUDA, 16 on CPU")
    parser.add_argument(
        "--dtypes",
        type=harness.names_of(DTYPES),
        help="of float32, bfloat16, float16; default bfloat16, on CPU float32",
    )
    options = parser.parse_args(argv)
    device = harness.chosen_device(options)
    is_cuda = device.type == "cuda"
    limits = ceilings.load(options.ceilings, device)
    torch.manual_seed(0)
    providers = options.providers
    rows = (
        row
        for name in options.ops
        for shape in options.shapes or ["deit_tiny" if is_cuda else "digits"]
        for batch in options.batches or ([128, 256, 512] if is_cuda else [16])
        for dtype in options.dtypes or ["bfloat16" if is_cuda else "float32"]
        for row in harness.survive(
            bench(name, shape, batch, dtype, providers, device, limits, options.rounds),
            op=name,
            dtype=dtype,
            shape=f"{shape} B={batch}",
        )
    )
    harness.record("fused_layers", rows, device, options.out)


if __name__ == "__main__":
    main()
