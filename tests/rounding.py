"""How far rounding may take a correct result from the exact one: the bound of every low-precision result in the tests.

No processor's rounding is the measure. The computation runs once in float64, which is the truth, and then some times
with the result of each operation disturbed as rounding could disturb it, in whatever order its sums are taken.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._decomp import get_decompositions
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

aten = torch.ops.aten
SAMPLES = 6
FACTOR = (
    4  # from the largest error of the samples to the one allowed; twice as much for a single number, which varies more
)

# Linear in all of their tensors, so that absolute arguments give the sum of the absolute terms; and the half ulps of it
# by which a result may move: of hundreds of terms added one by one, or where a map's coordinates (up to 64) are rounded
# before their fractions become weights.
SUMS = dict.fromkeys([
    aten.mm, aten.bmm, aten.addmm, aten.baddbmm, aten.sum, aten.mean, aten.convolution, aten.convolution_backward,
], 4) | dict.fromkeys([aten.upsample_bilinear2d, aten.upsample_bilinear2d_backward], 64)  # fmt: skip
# Their values are their arguments' or constants.
MOVES = {
    aten.clone, aten.copy_, aten._to_copy, aten._unsafe_view, aten.cat, aten.stack, aten.repeat, aten.neg,
    aten.select_backward, aten.slice_backward, aten.ones_like, aten.zeros_like, aten.new_empty_strided,
}  # fmt: skip
# A kernel of these keeps float32 from its arguments to its results.
KERNELS = get_decompositions([
    aten.native_layer_norm, aten.native_layer_norm_backward, aten.native_batch_norm, aten.native_batch_norm_backward,
    aten._softmax, aten._softmax_backward_data, aten._safe_softmax, aten.logsumexp,
])  # fmt: skip


@functools.cache
def aliasing(func: Any) -> tuple[bool, bool]:
    """Whether results of an operation share memory with its arguments, and whether it writes them in place."""
    aliases = [value.alias_info for value in func._schema.returns if value.alias_info]
    return bool(aliases), any(alias.is_write for alias in aliases)


class Rounding(TorchDispatchMode):
    """Moves what operations compute in float64 at random, by what rounding could.

    A value x moves by at most half an ulp of `dtype`, and a sum of terms t besides by some half ulps (SUMS) of
    `sums_in` at sum|t|. Within an operation of `kernels` the rounding is the one given there. Gradients are computed by
    operations too: the whole of a training step is disturbed.
    """

    def __init__(self, dtype: torch.dtype, seed: int, sums_in: torch.dtype, kernels: Mapping[Any, Rounding] = {}):
        super().__init__()
        self.unit, self.tiny = torch.finfo(dtype).eps / 2, torch.finfo(dtype).tiny
        self.sum_unit, self.kernels = torch.finfo(sums_in).eps / 2, kernels
        self.seed, self.generators = seed, {}

    def moved(self, value: Any, terms: Any = None, half_ulps: float = 0) -> Any:
        """`value` in a new tensor; `terms` is its sum of absolute terms."""
        if not isinstance(value, Tensor) or value.dtype != torch.float64:
            return value
        if value.device not in self.generators:
            self.generators[value.device] = torch.Generator(value.device).manual_seed(self.seed)
        size = value.abs().add_(self.tiny).mul_(self.unit)
        if half_ulps:
            size.add_(terms, alpha=half_ulps * self.sum_unit)
        noise = torch.empty_like(size, dtype=torch.float32).uniform_(-1, 1, generator=self.generators[value.device])
        return size.mul_(noise).add_(value)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in self.kernels:
            with self.kernels[func]:
                result = KERNELS[func](*args, **kwargs)
        else:
            result = func(*args, **kwargs)
        has_aliases, is_in_place = aliasing(func)
        is_made = not any(isinstance(arg, Tensor) for arg in args)
        if is_made or func.overloadpacket in MOVES or (has_aliases and not is_in_place):
            return result
        if is_in_place:
            return result.copy_(self.moved(result))
        terms, half_ulps = result, SUMS.get(func.overloadpacket, 0)
        if half_ulps:
            terms = func(*tree_map_only(Tensor, torch.abs, args), **kwargs)
        if isinstance(result, Tensor):
            return self.moved(result, terms, half_ulps)
        return tuple(self.moved(value, term, half_ulps) for value, term in zip(result, terms, strict=True))


def training_rounding(dtype: torch.dtype, seed: int, pytorch_norms: bool) -> Rounding:
    wide = torch.promote_types(dtype, torch.float32)
    kernels = dict.fromkeys(KERNELS, Rounding(wide, 3 * seed, wide))
    if pytorch_norms:
        kernels[aten.native_layer_norm_backward.default] = Rounding(wide, 3 * seed + 1, dtype)
    return Rounding(dtype, 3 * seed + 2, wide, kernels)


SIZES = ("rms", "largest", "systematic")


def sizes(error: Tensor, exact: Tensor) -> Tensor:
    """SIZES of an error; the last, its part along the exact values, shows a wrong factor that rounding would hide."""
    if error.numel() == 0:
        return torch.zeros(3, dtype=torch.float64)
    along = (error * exact).sum().abs() / exact.norm().clamp(min=torch.finfo(torch.float64).tiny)
    return torch.stack([error.square().mean().sqrt(), error.abs().max(), along]).cpu()


@dataclass(frozen=True)
class Truth:
    """An exact value in float64, and the largest `sizes` of an error that rounding explains."""

    exact: Tensor
    allowed: Tensor

    @property
    def largest_error(self) -> float:
        return self.allowed[1].item()


def truth(compute: Callable[[], Any], dtype: torch.dtype, pytorch_norms: bool = False) -> Any:
    """What `compute` should give where its operations round to `dtype`.

    Args:
        compute: the computation in float64, gradients included: returns tensors in any nest of dicts and sequences.
        dtype: of the results under test, and of what their computation keeps.
        pytorch_norms: whether layer norms of PyTorch's are among what is tested; their gradients of weight and bias
            are summed over the tokens in `dtype` on the CPU.
    Returns:
        A Truth in place of every tensor.
    """
    with sdpa_kernel(SDPBackend.MATH):
        exact, nest = tree_flatten(compute())
        errors = torch.zeros(len(exact), 3, dtype=torch.float64)
        for seed in range(SAMPLES):
            with training_rounding(dtype, seed, pytorch_norms):
                sample = tree_flatten(compute())[0]
            sampled = [sizes(x.double() - e, e) for x, e in zip(sample, exact, strict=True)]
            errors = torch.maximum(errors, torch.stack(sampled))
    number = [FACTOR * (1 + max(e.numel(), 1) ** -0.5) for e in exact]
    allowed = [error * torch.tensor([f, f, 2 * FACTOR]) for error, f in zip(errors, number, strict=True)]
    unit = torch.finfo(torch.promote_types(dtype, torch.float32)).eps / 2
    for row, e in zip(allowed, exact, strict=True):
        row[2] += FACTOR * unit * e.norm().item()  # rounded constants are a factor too
    return nest.unflatten(map(Truth, exact, allowed))


def assert_rounded(actual: Tensor, truth: Truth, name: str = "result") -> None:
    """Asserts that `actual` errs from the truth by no more than rounding explains."""
    exact = truth.exact
    assert actual.shape == exact.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(exact.shape)}"
    for what, error, allowed in zip(SIZES, sizes(actual.double() - exact, exact), truth.allowed, strict=True):
        assert error <= allowed, f"{name}: {what} error {error:.3g} exceeds {allowed:.3g}"  # as NaN does


def assert_all_rounded(actual: Mapping[str, Tensor], expected: Mapping[str, Truth]) -> None:
    """Asserts `assert_rounded` of every value, by its name."""
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        assert_rounded(value, expected[name], name)
