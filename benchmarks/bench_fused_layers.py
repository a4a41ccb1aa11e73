"""Measure each operation that `lgfast.fuse_layers` swaps in against torch.compile and eager PyTorch.

    python -m benchmarks.bench_fused_layers [--providers eager,compile,lgfast] [--shapes deit_tiny] [--batches 128,256]

The rows decide whether an operation stays: its `both` must beat compile on the GPU. Inputs are the tokens of one block,
[B, N, C] of the stream and [B, N, 4 C] of the MLP, and the images of the patch convolution that makes these tokens
(N - 1 patches and the class token). On a GPU each mode is a CUDA graph over enough copies of the inputs to exceed twice
the L2 cache. copy_share: the bytes of every tensor, read or written once, over the median time, as a share of a device
copy. times_compile: compile's median time over the row's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import ceilings, harness, row_file
from benchmarks.cuda_calls import captured
from lgfast.fusion.layers import patch_product
from lgfast.ops import add_layer_norm, bias_gelu

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MODES = ("fwd", "both")
EPS = 1e-6


def eager_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, drop_scale: Tensor):
    y = residual + x * drop_scale[:, None, None]
    return y, F.layer_norm(y, weight.shape, weight, bias, EPS)


def eager_gelu(x: Tensor, bias: Tensor):
    return (F.gelu(x + bias),)


def eager_patches(x: Tensor, weight: Tensor, bias: Tensor):
    return (F.conv2d(x, weight, bias, stride=weight.shape[2:]),)


@dataclass(frozen=True)
class Shape:
    """Tokens, channels and patch size (pixels each way) of a model."""

    tokens: int
    channels: int
    patch: int


def norm_inputs(batch: int, shape: Shape, new: Callable[..., Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    x, residual, *douts = (new(batch, shape.tokens, shape.channels) for _ in range(4))
    weight, bias = new(shape.channels), new(shape.channels)
    scale = torch.full_like(x[:, 0, 0], 0.9).bernoulli().div_(0.9)
    return [*(tensor.requires_grad_() for tensor in (x, residual, weight, bias)), scale], douts


def gelu_inputs(batch: int, shape: Shape, new: Callable[..., Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    x, dout = (new(batch, shape.tokens, 4 * shape.channels) for _ in range(2))
    return [x.requires_grad_(), new(4 * shape.channels).requires_grad_()], [dout]


def patch_inputs(batch: int, shape: Shape, new: Callable[..., Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Make the inputs of the patch convolution; the images receive no gradient."""
    grid = math.isqrt(shape.tokens - 1)
    images = new(batch, 3, grid * shape.patch, grid * shape.patch)
    weight = new(shape.channels, 3, shape.patch, shape.patch).requires_grad_()
    dout = new(batch, grid * grid, shape.channels).transpose(1, 2).unflatten(2, (grid, grid))
    return [images, weight, new(shape.channels).requires_grad_()], [dout]


@dataclass(frozen=True)
class Op:
    """One operation in eager PyTorch and in lgfast, its inputs, and how much each mode reads and writes.

    Attributes:
        make_inputs: (batch, shape, maker of random tensors) -> arguments (parameters and maps require gradients), and
            the gradients of the results.
        elements: (arguments, gradients of the results) -> by mode, the elements of all maps that it reads and writes;
            parameters are not counted.
    """

    eager: Callable
    lgfast: Callable
    make_inputs: Callable
    elements: Callable[[Sequence[Tensor], Sequence[Tensor]], dict[str, int]]


OPS = {
    "add_layer_norm": Op(
        eager_norm,
        lambda x, residual, weight, bias, scale: add_layer_norm(x, residual, weight, bias, EPS, scale),
        norm_inputs,
        # x, residual, y, out; dout, dy, y, dx, dresidual
        lambda inputs, douts: {"fwd": 4 * inputs[0].numel(), "both": (4 + 5) * inputs[0].numel()},
    ),
    "bias_gelu": Op(
        eager_gelu,
        lambda x, bias: (bias_gelu(x, bias),),
        gelu_inputs,
        lambda inputs, douts: {"fwd": 2 * inputs[0].numel(), "both": (2 + 3) * inputs[0].numel()},
    ),
    "patch_conv": Op(
        eager_patches,
        lambda x, weight, bias: (patch_product(x, weight, bias),),
        patch_inputs,
        # images, out; images, dout
        lambda inputs, douts: {
            "fwd": inputs[0].numel() + douts[0].numel(),
            "both": 2 * (inputs[0].numel() + douts[0].numel()),
        },
    ),
}
SHAPES = {"deit_tiny": Shape(197, 192, 16), "vit_small": Shape(197, 384, 16), "digits": Shape(65, 64, 4)}
PROVIDERS = ("eager", "compile", "lgfast")


def make_call(op: Op, provider: str) -> Callable:
    if provider == "compile":
        return torch.compile(op.eager, dynamic=False)
    return getattr(op, provider)


def make_inputs(
    name: str, batch: int, shape: Shape, dtype: torch.dtype, device: torch.device
) -> tuple[list[Tensor], list[Tensor]]:
    """Make the operation's arguments, parameters and maps with gradients, and the gradients of its results."""
    return OPS[name].make_inputs(batch, shape, partial(torch.randn, dtype=dtype, device=device))


def run(call: Callable, inputs: Sequence[Tensor], douts: Sequence[Tensor], mode: str) -> list[Tensor]:
    """Compute the results and, in mode `both`, the gradients of every argument that requires one."""
    if mode == "fwd":
        with torch.no_grad():
            return list(call(*inputs))
    outputs = call(*inputs)
    leaves = [tensor for tensor in inputs if tensor.requires_grad]
    return [*outputs, *torch.autograd.grad(outputs, leaves, douts)]


def check(call: Callable, name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
    """Check that results and gradients of two samples are as exact as eager PyTorch's in the same dtype."""
    inputs, douts = make_inputs(name, 2, shape, dtype, device)
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
    op, dtype = OPS[name], DTYPES[dtype_name]
    calls = {provider: make_call(op, provider) for provider in providers}
    good = harness.agreeing(calls, lambda p: check(calls[p], name, SHAPES[shape], dtype, device), f"{name} {shape}")
    calls = {provider: calls[provider] for provider in good}
    first = make_inputs(name, batch, SHAPES[shape], dtype, device)
    num_bytes = {mode: count * dtype.itemsize for mode, count in op.elements(*first).items()}
    is_cuda = device.type == "cuda"
    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size if is_cuda else 0
    num_copies = 1 + 2 * l2_bytes // num_bytes["fwd"]
    copies = [first, *(make_inputs(name, batch, SHAPES[shape], dtype, device) for _ in range(num_copies - 1))]
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
                **limits.shares(timing, num_bytes[mode]),
                "times_compile": timing.per_s(compiled.median_ms / 1e3) if compiled and not compiled.error else None,
            }


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser(__doc__, rounds=50)
    harness.add_names(parser, "--providers", PROVIDERS)
    harness.add_names(parser, "--ops", OPS)
    harness.add_names(parser, "--shapes", SHAPES, about="default: deit_tiny, on CPU digits")
    parser.add_argument("--batches", type=harness.counts, help="default 128,256,512 on CUDA, 16 on CPU")
    harness.add_names(parser, "--dtypes", DTYPES, about="default: bfloat16, on CPU float32")
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
    row_file.record("fused_layers", rows, device, options.out)


if __name__ == "__main__":
    main()
