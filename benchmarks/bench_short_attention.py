"""Time short_attention against PyTorch's attention backends, at the shapes of small vision transformers.

    python -m benchmarks.bench_short_attention [--providers lgfast,flash,cudnn] [--shapes deit_tiny] [--batches 256]

Every provider starts from the packed projection (qkv, or q and kv) and ends with its packed gradient, so the copies
that autograd adds count. On a GPU each mode is a CUDA graph over enough copies of the inputs to exceed twice the L2
cache; events time it, and the host's time is not counted. gb_per_s: bytes of q, k, v, out (forward) and twice that
(backward), each read or written once, over the median time. copy_share: gb_per_s over the bandwidth of a device copy.
peak_mib: of a run outside the graph.

Providers:

    sdpa         scaled_dot_product_attention; PyTorch chooses the backend (cuDNN before flash on Hopper), which the
                 column `backend` names
    flash, cudnn, efficient, math   that backend of it
    flex         compiled FlexAttention; flex-flash: with its FLASH backend
    fa4          flash-attention 4

The script names a provider that is not installed, or that does not serve a shape.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
import torch._functorch.config
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from benchmarks import ceilings, harness, row_file
from benchmarks.attention_backend import backend_that_runs
from benchmarks.cuda_calls import captured
from lgfast.ops import short_attention, short_attention_qkvpacked
from tests import attention_truth

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}  # float32: CPU
MODES = ("fwd", "bwd", "both")
PEER_ERROR = 2**-5  # relative; bfloat16 rounds by up to 2**-9, several times on the way


@dataclass(frozen=True)
class Shape:
    heads: int
    queries: int
    keys: int
    head_dim: int

    def num_bytes(self, batch: int, mode: str, dtype: torch.dtype) -> int:
        forward = batch * self.heads * self.head_dim * dtype.itemsize * (2 * self.queries + 2 * self.keys)
        return {"fwd": forward, "bwd": 2 * forward, "both": 3 * forward}[mode]


SHAPES = {
    "deit_tiny": Shape(3, 197, 197, 64),
    "t2t_vit_7": Shape(4, 197, 197, 64),
    "vit_small": Shape(6, 197, 197, 64),
    "pit_ti": Shape(2, 730, 730, 32),
    "pvt_v2_b0_stage1": Shape(1, 3136, 49, 32),
    "pvt_v2_b0_stage2": Shape(2, 784, 49, 32),
    "pvt_v2_b0_stage3": Shape(5, 196, 49, 32),
    "pvt_v2_b0_stage4": Shape(8, 49, 49, 32),
    "convit_tiny": Shape(4, 196, 196, 48),  # its attention by content
    "digits": Shape(2, 65, 65, 32),
}


def split(leaves: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Split one qkv [B, N, 3, H, D], or q [B, N, H, D] and kv [B, M, 2, H, D], into q, k, v [B, N, H, D]."""
    return leaves[0].unbind(2) if len(leaves) == 1 else (leaves[0], *leaves[1].unbind(2))


def lgfast(leaves):
    return short_attention_qkvpacked(*leaves) if len(leaves) == 1 else short_attention(*split(leaves)).flatten(2)


def sdpa(backend: SDPBackend | None = None) -> Callable:
    """Run PyTorch's attention by one backend; None: by PyTorch's own choice."""

    def call(leaves):
        with sdpa_kernel(backend) if backend else nullcontext():
            out = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in split(leaves)))
        return out.transpose(1, 2).flatten(2)

    return call


torch._functorch.config.donated_buffer = False  # otherwise a compiled backward runs only once
compiled_flex = torch.compile(flex_attention, dynamic=False)


def flex(leaves, **options):
    return compiled_flex(*(x.transpose(1, 2) for x in split(leaves)), **options).transpose(1, 2).flatten(2)


def flash_attention_4(leaves):
    from flash_attn.cute import flash_attn_func  # the package flash-attn-4

    out = flash_attn_func(*split(leaves))
    return (out[0] if isinstance(out, tuple) else out).flatten(2)


PROVIDERS: dict[str, Callable] = {
    "lgfast": lgfast,
    "sdpa": sdpa(),
    "flash": sdpa(SDPBackend.FLASH_ATTENTION),
    "cudnn": sdpa(SDPBackend.CUDNN_ATTENTION),
    "efficient": sdpa(SDPBackend.EFFICIENT_ATTENTION),
    "math": sdpa(SDPBackend.MATH),
    "flex": flex,
    "flex-flash": partial(flex, kernel_options={"BACKEND": "FLASH"}),
    "fa4": flash_attention_4,
}


def backend_of(provider: str, leaves) -> str:
    """Return the backend that runs: for `sdpa` the one that PyTorch chooses, otherwise the provider itself."""
    return backend_that_runs(lambda: PROVIDERS["sdpa"](leaves)) if provider == "sdpa" else provider


def make_inputs(
    shape: Shape, batch: int, dtype: torch.dtype, device: torch.device
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Make the inputs as leaves, and the gradient of the output [B, N, H * D]."""
    sizes = (shape.heads, shape.head_dim)
    if shape.queries == shape.keys:
        leaf_sizes = [(batch, shape.queries, 3, *sizes)]
    else:
        leaf_sizes = [(batch, shape.queries, *sizes), (batch, shape.keys, 2, *sizes)]
    leaves = tuple(torch.randn(size, dtype=dtype, device=device, requires_grad=True) for size in leaf_sizes)
    return leaves, torch.randn(batch, shape.queries, shape.heads * shape.head_dim, dtype=dtype, device=device)


def check(provider: str, leaves, dout) -> None:
    """Check output and gradients of the batch's first two images.

    lgfast's must be within the bound of the tests. A peer's are compared by the norm, so that no peer is left out for a
    rounding.
    """
    out = PROVIDERS[provider](leaves)
    grads = split(torch.autograd.grad(out, leaves, dout))
    q, k, v = (x[:2].detach() for x in split(leaves))
    dout, scale = dout[:2].view(q.shape), q.shape[-1] ** -0.5
    results = [out[:2].detach().view(q.shape), *(grad[:2] for grad in grads)]
    named = dict(zip(("out", "dq", "dk", "dv"), results, strict=True))
    if provider == "lgfast":
        return attention_truth.check(named, q, k, v, dout, scale)
    exact = attention_truth.attention(*(x.double() for x in (q, k, v, dout)), scale)
    for name, value in named.items():
        error = ((value.double() - exact[name]).norm() / exact[name].norm()).item()
        assert error < PEER_ERROR, f"{name}: relative error {error:.3g}"  # NaN fails


def run_mode(call: Callable, mode: str, inputs) -> Callable[[], None]:
    """Return a function without arguments that runs `mode` on every copy of the inputs."""
    if mode == "fwd":

        def forward():
            with torch.no_grad():
                for leaves, _ in inputs:
                    call(leaves)

        return forward
    if mode == "both":
        return lambda: [torch.autograd.grad(call(leaves), leaves, dout) for leaves, dout in inputs]
    graphs = [(call(leaves), leaves, dout) for leaves, dout in inputs]
    return lambda: [torch.autograd.grad(out, leaves, dout, retain_graph=True) for out, leaves, dout in graphs]


def bench(name: str, batch: int, dtype_name: str, providers: list[str], device: torch.device, limits, rounds: int):
    shape, dtype = SHAPES[name], DTYPES[dtype_name]
    is_cuda = device.type == "cuda"
    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size if is_cuda else 0
    num_copies = 1 + 2 * l2_bytes // shape.num_bytes(batch, "fwd", dtype)
    inputs = [make_inputs(shape, batch, dtype, device) for _ in range(num_copies)]
    providers = harness.agreeing(providers, lambda provider: check(provider, *inputs[0]), name)
    backends = {provider: backend_of(provider, inputs[0][0]) for provider in providers}
    if "sdpa" in backends:
        print(f"{name} sdpa: PyTorch chooses {backends['sdpa']}")
    for mode in MODES:
        calls = {}
        for provider in providers:
            make_run, is_peer = partial(run_mode, PROVIDERS[provider], mode), provider != "lgfast"
            if is_cuda:
                calls[provider] = harness.ready(partial(captured, partial(make_run, inputs)), is_peer)
                calls[provider].eager = harness.ready(partial(make_run, inputs[:1]), is_peer)
            else:
                calls[provider] = harness.ready(partial(make_run, inputs), is_peer)
        timings = harness.time_interleaved(calls, device, rounds, fragile=set(calls) - {"lgfast"}, queued=True)
        timings = {provider: timing.per_call(num_copies) for provider, timing in timings.items()}
        peers = [timing.median_ms for provider, timing in timings.items() if provider != "lgfast" and not timing.error]
        for provider, timing in timings.items():
            yield {
                "op": "short_attention",
                "provider": provider,
                "mode": mode,
                "dtype": dtype_name,
                "shape": f"{name} B={batch}",
                "backend": backends[provider],
                **vars(timing),
                **limits.shares(timing, shape.num_bytes(batch, mode, dtype)),
                "times_best_peer": timing.per_s(min(peers) / 1e3) if peers else None,
            }


def main(argv: Sequence[str] | None = None) -> None:
    parser = harness.parser(__doc__, rounds=50)
    harness.add_names(parser, "--providers", PROVIDERS)
    harness.add_names(parser, "--shapes", SHAPES)
    parser.add_argument(
        "--batches", type=harness.counts, default="128,256,512", help="comma-separated; default 128,256,512"
    )
    harness.add_names(parser, "--dtypes", DTYPES, "bfloat16")
    options = parser.parse_args(argv)
    device = harness.chosen_device(options)
    limits = ceilings.load(options.ceilings, device)
    torch.manual_seed(0)
    providers = options.providers
    rows = (
        row
        for name in options.shapes
        for batch in options.batches
        for dtype in options.dtypes
        for row in harness.survive(
            bench(name, batch, dtype, providers, device, limits, options.rounds),
            op="short_attention",
            dtype=dtype,
            shape=f"{name} B={batch}",
        )
    )
    row_file.record("short_attention", rows, device, options.out)


if __name__ == "__main__":
    main()
