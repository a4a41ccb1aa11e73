"""The trial of each kernel: its inputs, its call, and the truth with the error that is allowed.

The truth is float64 in plain PyTorch; for augment, whose bytes are fixed, it is the kernel of the CPU. The error
allowed is that of the operation's tests: as much as rounding to the same dtype explains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from benchmarks import bench_augment, bench_feature_mse, bench_fused_layers
from lgfast.ops import AugmentSpec, augment, augment_plan, feature_mse, flat_adamw
from lgfast.ops.flat_adamw import hyperparameter_row
from tests import attention_truth
from tests.rounding import truth as true_results

ADAMW = {"lr": 5e-4, "weight_decay": 0.05, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
BLOCK = (192, 192, 576 * 192, 576, 192 * 192, 192, 192, 192, 768 * 192, 768, 192 * 768, 192)  # of DeiT-Ti
DEIT_TINY_SIZES = (192 * 768, 192, 192, 197 * 192, *(12 * BLOCK), 192, 192, 100 * 192, 100)

Truth = tuple[Tensor, float]  # float64 value, largest error


@dataclass(frozen=True)
class Trial:
    """One kernel on one shape.

    Attributes:
        call: runs the kernel on the inputs as they are; returns its results.
        truth: returns for each result the true value and the largest error allowed.
        renew: writes other random inputs into the same memory.
        reset: restores what a call changes in place.
    """

    call: Callable[[], Iterable[Tensor]]
    truth: Callable[[], list[Truth]]
    renew: Callable[[], None]
    reset: Callable[[], None] = lambda: None


def fill_random(tensors: Iterable[Tensor]) -> None:
    with torch.no_grad():
        for tensor in tensors:
            tensor.normal_()


def compared(call: Callable[..., list[Tensor]], inputs: list[Tensor]) -> list[Truth]:
    """Return the results of a function in float64, each with the error that rounding to the inputs' dtype explains."""
    wide = [x.detach().double().requires_grad_(x.requires_grad) for x in inputs]
    found = true_results(lambda: [result.detach() for result in call(*wide)], inputs[0].dtype)
    return [(result.exact, result.largest_error) for result in found]


def attention_forward(device: torch.device, batch: int, tokens: int, heads: int, head_dim: int) -> Trial:
    qkv = torch.randn(batch, tokens, 3, heads, head_dim, dtype=torch.bfloat16, device=device)
    dout, scale = torch.zeros_like(qkv[:, :, 0]), head_dim**-0.5

    def truth() -> list[Truth]:
        found = attention_truth.true_attention(*qkv.unbind(2), dout, scale)
        out, lse = found["out"], found["lse"]
        return [(out.exact.flatten(2), out.largest_error), (lse.exact, lse.largest_error)]

    call = torch.ops.lgfast.short_attention_qkvpacked_fwd
    return Trial(lambda: call(qkv, None, scale), truth, lambda: fill_random([qkv]))


def attention_backward(device: torch.device, batch: int, tokens: int, heads: int, head_dim: int) -> Trial:
    """Try backward on output and statistics from float64, so that a wrong forward kernel does not show here."""
    qkv, dout = (
        torch.randn(batch, tokens, *more, heads, head_dim, dtype=torch.bfloat16, device=device) for more in ((3,), ())
    )
    out, scale = torch.empty_like(dout), head_dim**-0.5
    lse = torch.empty(batch, heads, tokens, device=device)

    def prepare() -> None:
        exact = attention_truth.attention(*qkv.double().unbind(2), dout.double(), scale)
        out.copy_(exact["out"])
        lse.copy_(exact["lse"])

    def truth() -> list[Truth]:
        found = attention_truth.true_attention(*qkv.unbind(2), dout, scale)
        exact = torch.stack([found[name].exact for name in ("dq", "dk", "dv")], 2)
        # the summands' roundings, if all are in one direction
        rounding = torch.finfo(torch.bfloat16).eps * exact.abs().sum(1).max().item()
        largest_error = max(found[name].largest_error for name in ("dq", "dk", "dv"))
        return [(exact, largest_error), (exact.sum(1), rounding)]

    def renew() -> None:
        fill_random([qkv, dout])
        prepare()

    prepare()
    call = torch.ops.lgfast.short_attention_qkvpacked_bwd
    return Trial(lambda: call(dout.flatten(2), qkv, out.flatten(2), lse, scale, True), truth, renew)


def guidance(device: torch.device, batch: int, model: str) -> Trial:
    """Try feature_mse: the loss of all pairs, and the gradients of the student maps."""
    student, teacher = bench_feature_mse.make_maps(model, batch, torch.bfloat16, device)

    def call() -> list[Tensor]:
        loss = feature_mse(student, teacher)
        return [loss.detach(), *torch.autograd.grad(loss, student)]

    def truth() -> list[Truth]:
        exact = [maps.detach().double().requires_grad_() for maps in student]
        loss = bench_feature_mse.composed(exact, [maps.double() for maps in teacher])
        relative = 4 * torch.finfo(torch.bfloat16).eps + 64 * torch.finfo(torch.float32).eps
        values = [loss.detach(), *torch.autograd.grad(loss, exact)]
        return [(value, relative * value.abs().max().item()) for value in values]

    return Trial(call, truth, lambda: fill_random([*student, *teacher]))


def adamw(device: torch.device, sizes: tuple[int, ...]) -> Trial:
    """Try one step over parameters of these sizes, with bfloat16 gradients."""
    offsets, total = [], 0
    for size in sizes:
        offsets.append(total)
        total += -(-size // 8) * 8
    grads = [torch.empty(size, dtype=torch.bfloat16, device=device) for size in sizes]
    start = torch.empty(2, total, device=device)
    params, m, v = torch.empty(3, total, device=device).unbind()
    low = torch.zeros(total, dtype=torch.bfloat16, device=device)
    row = hyperparameter_row(ADAMW["lr"], ADAMW["weight_decay"], (ADAMW["beta1"], ADAMW["beta2"]), ADAMW["eps"])
    numbers, steps = torch.tensor([row], dtype=torch.float64, device=device), torch.zeros(len(sizes), device=device)
    num_skipped = torch.zeros(1, dtype=torch.int64, device=device)

    def renew() -> None:
        fill_random([*grads, start])
        for offset, size in zip(offsets, sizes, strict=True):  # padding is zero
            start[:, offset + size : offset + -(-size // 8) * 8] = 0

    def reset() -> None:
        params.copy_(start[0]), m.copy_(start[1]), v.copy_(start[1].square()), steps.fill_(3)

    def call() -> list[Tensor]:
        flat_adamw(params, grads, m, v, offsets, [0] * len(sizes), numbers, steps, num_skipped, low=low)
        return [params, m, v, low, steps]

    def truth() -> list[Truth]:
        p, moment = start.double().unbind()
        g = torch.zeros_like(p)
        for offset, grad in zip(offsets, grads, strict=True):
            g[offset : offset + len(grad)] = grad.double()
        b1, b2, t = ADAMW["beta1"], ADAMW["beta2"], 4
        new_m, new_v = moment + (1 - b1) * (g - moment), b2 * moment.square() + (1 - b2) * g.square()
        update = new_m / (1 - b1**t) / ((new_v / (1 - b2**t)).sqrt() + ADAMW["eps"])
        exact = p * (1 - ADAMW["lr"] * ADAMW["weight_decay"]) - ADAMW["lr"] * update
        largest = [x.abs().max().item() for x in (exact, new_m, new_v)]
        largest[0] += ADAMW["lr"] * update.abs().max().item()
        float32 = 4 * torch.finfo(torch.float32).eps
        roundings = [(x, float32 * size) for x, size in zip((exact, new_m, new_v), largest, strict=True)]
        cast = (exact, torch.finfo(torch.bfloat16).eps * largest[0])
        return [*roundings, cast, (torch.full_like(steps, 4.0, dtype=torch.float64), 0.0)]

    renew()
    return Trial(call, truth, renew, reset)


class Views:
    """The augment op with the paper's recipe, from 32 pixels, on a device and on the CPU."""

    def __init__(self, device: torch.device, batch: int, spec: AugmentSpec = bench_augment.SPEC) -> None:
        self.spec = spec
        self.sources = [bench_augment.Source(batch, place, torch.bfloat16) for place in (device, torch.device("cpu"))]
        self.plan = self.drawn(self.sources[1]).to(device)

    def drawn(self, source: bench_augment.Source) -> Tensor:
        return augment_plan(self.spec, source.sizes, source.indices, source.counter)

    def made(self, source: bench_augment.Source, plan: Tensor) -> tuple[Tensor, Tensor | None]:
        places = (source.pixels, source.offsets, source.sizes, source.indices)
        return augment(*places, plan, self.spec, source.dtype)

    def renew(self) -> None:
        for source in self.sources:
            source.counter[1] += 1
        self.plan.copy_(self.drawn(self.sources[1]))


def view_plans(device: torch.device, batch: int) -> Trial:
    views = Views(device, batch)
    mine, cpu = views.sources

    def truth() -> list[Truth]:
        exact = views.drawn(cpu)
        return [(exact.to(device), 1e-12 * max(1.0, exact.abs().max().item()))]  # cos, log, exp of two math libraries

    return Trial(lambda: [views.drawn(mine)], truth, views.renew)


def views(device: torch.device, batch: int, image_size: int = bench_augment.SPEC.image_size) -> Trial:
    made = Views(device, batch, replace(bench_augment.SPEC, image_size=image_size))
    mine, cpu = made.sources

    def truth() -> list[Truth]:
        return [(x.to(device).double(), 0.0) for x in made.made(cpu, made.plan.cpu())]

    return Trial(lambda: made.made(mine, made.plan), truth, made.renew)


def norm_forward(device: torch.device, batch: int, shape: str) -> Trial:
    inputs, _ = bench_fused_layers.make_inputs(
        "add_layer_norm", batch, bench_fused_layers.SHAPES[shape], torch.bfloat16, device
    )

    def truth() -> list[Truth]:
        y, out = compared(bench_fused_layers.eager_norm, inputs)
        mean, variance = y[0].mean(-1), y[0].var(-1, correction=0)
        rstd = (variance + bench_fused_layers.EPS).rsqrt()
        return [y, out, (mean, y[1]), (rstd, 2 * y[1] * (rstd.square() * y[0].abs().amax(-1)).max().item())]

    x, residual, weight, bias, drop_scale = (tensor.detach() for tensor in inputs)
    call = torch.ops.lgfast.add_layer_norm_fwd
    return Trial(
        lambda: call(x, residual, weight, bias, drop_scale, bench_fused_layers.EPS),
        truth,
        lambda: fill_random([x, residual, weight, bias]),
    )


def norm_backward(device: torch.device, batch: int, shape: str) -> Trial:
    sizes = bench_fused_layers.SHAPES[shape]
    y, dy, dout = torch.randn(3, batch, sizes.tokens, sizes.channels, dtype=torch.bfloat16, device=device).unbind()
    weight, scale = torch.randn_like(y[0, 0]), torch.full_like(y[:, 0, 0], 0.9).bernoulli().div_(0.9)
    mean, rstd = (torch.empty(y.shape[:-1], device=device) for _ in range(2))

    def prepare() -> None:
        mean.copy_(y.double().mean(-1))
        rstd.copy_((y.double().var(-1, correction=0) + bench_fused_layers.EPS).rsqrt())

    def gradients(y: Tensor, weight: Tensor, scale: Tensor, dy: Tensor, dout: Tensor) -> list[Tensor]:
        y, weight = y.detach().requires_grad_(), weight.detach().requires_grad_()
        bias = torch.zeros_like(weight).requires_grad_()
        out = torch.nn.functional.layer_norm(y, weight.shape, weight, bias, bench_fused_layers.EPS)
        dnorm, dweight, dbias = torch.autograd.grad(out, (y, weight, bias), dout)
        return [scale[:, None, None] * (dnorm + dy), dnorm + dy, torch.stack([dweight, dbias])]

    def renew() -> None:
        fill_random([y, dy, dout, weight])
        prepare()

    prepare()
    call = torch.ops.lgfast.add_layer_norm_bwd
    return Trial(
        lambda: call(dout, dy, y, weight, scale, mean, rstd),
        lambda: compared(gradients, [y, weight, scale, dy, dout]),
        renew,
    )


def gelu(device: torch.device, batch: int, shape: str, is_backward: bool) -> Trial:
    sizes = bench_fused_layers.SHAPES[shape]
    x, dout = torch.randn(2, batch, sizes.tokens, 4 * sizes.channels, dtype=torch.bfloat16, device=device).unbind()
    bias = torch.randn_like(x[0, 0])

    def forward(x: Tensor, bias: Tensor, dout: Tensor) -> list[Tensor]:
        return list(bench_fused_layers.eager_gelu(x, bias))

    def backward(x: Tensor, bias: Tensor, dout: Tensor) -> list[Tensor]:
        leaves = [tensor.detach().requires_grad_() for tensor in (x, bias)]
        return list(torch.autograd.grad(bench_fused_layers.eager_gelu(*leaves), leaves, [dout]))

    ops = torch.ops.lgfast
    call = (lambda: ops.bias_gelu_bwd(dout, x, bias)) if is_backward else (lambda: [ops.bias_gelu_fwd(x, bias)])
    composition = backward if is_backward else forward
    return Trial(call, lambda: compared(composition, [x, bias, dout]), lambda: fill_random([x, dout, bias]))


LAYERS = ({"batch": 2, "shape": "digits"}, {"batch": 256, "shape": "deit_tiny"})
DEIT_TINY_HEADS = {"batch": 256, "tokens": 197, "heads": 3, "head_dim": 64}
ATTENTION = ({"batch": 1, "tokens": 197, "heads": 2, "head_dim": 64}, DEIT_TINY_HEADS)
FEW_TOKENS = {"batch": 1, "tokens": 49, "heads": 2, "head_dim": 32}

# For each kernel: the maker of its trial, its small shape, and its target shape.
TRIALS: dict[str, tuple[Callable[..., Trial], dict, dict]] = {
    "feature_mse_two_launches": (guidance, {"batch": 2, "model": "pit_ti"}, {"batch": 256, "model": "deit_tiny"}),
    "feature_mse": (guidance, {"batch": 2, "model": "pit_ti"}, {"batch": 256, "model": "deit_tiny"}),
    "flat_adamw": (adamw, {"sizes": (7, 192, 1000)}, {"sizes": DEIT_TINY_SIZES}),
    "augment_plan": (view_plans, {"batch": 4}, {"batch": 128}),
    "augment": (views, {"batch": 4}, {"batch": 128}),
    "augment_in_parts": (partial(views, image_size=256), {"batch": 4}, {"batch": 128}),  # beyond shared memory
    "bias_gelu_fwd": (partial(gelu, is_backward=False), *LAYERS),
    "bias_gelu_bwd": (partial(gelu, is_backward=True), *LAYERS),
    "add_layer_norm_fwd": (norm_forward, *LAYERS),
    "add_layer_norm_bwd": (norm_backward, *LAYERS),
    "short_attention_fwd": (attention_forward, *ATTENTION),
    "short_attention_fwd_wgmma": (attention_forward, *ATTENTION),
    "short_attention_bwd_streamed": (attention_backward, FEW_TOKENS, DEIT_TINY_HEADS),
    "short_attention_bwd_resident": (attention_backward, *ATTENTION),
    "short_attention_bwd_wgmma": (attention_backward, *ATTENTION),
}
