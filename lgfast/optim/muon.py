"""Muon for the matrices of a transformer's blocks, AdamW for the rest, in a form that a CUDA graph can hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lgfast.optim.device_numbers import DeviceNumbers, DeviceOptimizer
from lgfast.optim.flat_adamw import FlatAdamW

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of one iteration
ITERATIONS, EPSILON = 5, 1e-7


def orthogonalise(matrices: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Move the matrices' singular values near 1, by five Newton-Schulz iterations.

    Args:
        matrices: [n, rows, cols].
        dtype: the products' type.
    Returns:
        [n, rows, cols] of that dtype.
    """
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.to(dtype)
    x = x.mT if is_tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=EPSILON)
    a, b, c = NEWTON_SCHULZ
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        update = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, update, x, beta=a)
    return x.mT if is_tall else x


class Matrices:
    """The parameters of one shape in one buffer, with their momentum.

    Args:
        parameters: [rows, cols] each, float32; they become views of the buffer.
    """

    @torch.no_grad()
    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = parameters
        self.values = torch.stack(list(parameters)).contiguous()
        self.momentum = torch.zeros_like(self.values)
        for parameter, value in zip(parameters, self.values, strict=True):
            parameter.data = value
        self.scale = 0.2 * math.sqrt(max(self.values.shape[1:]))  # steps as large as AdamW's

    def gradients(self) -> Tensor:
        """Return the gradients [n, rows, cols]; zero where a parameter has none."""
        pairs = zip(self.parameters, self.values, strict=True)
        return torch.stack([torch.zeros_like(value) if p.grad is None else p.grad for p, value in pairs])


class Muon(DeviceOptimizer):
    """Momentum made orthogonal for matrices, AdamW (`FlatAdamW`) for the other parameters.

        momentum = mu momentum + (1 - mu) gradient
        matrix   = (1 - lr wd) matrix - lr 0.2 sqrt(max(rows, cols)) orthogonalise(mu momentum + (1 - mu) gradient)

    which is torch.optim.Muon with Nesterov momentum and adjust_lr_fn="match_rms_adamw", for all matrices of one shape
    in one batch of products, without a host read. Call `send_hyperparameters` before a captured step is replayed. Move
    or cast the model before: afterwards its parameters must stay where they are.

    Args:
        matrices: parameters [rows, cols] of the blocks, contiguous float32 on one device.
        rest: groups of the other parameters, as FlatAdamW takes them.
        lr: learning rate of all.
        weight_decay: of the matrices, decoupled.
        momentum: mu.
        dtype: of the Newton-Schulz products; None: bfloat16 on CUDA, float32 elsewhere.
    Attributes:
        param_groups: the matrices' group, then those of the rest; a learning rate written here counts.
    Raises:
        ValueError: there are no matrices, or FlatAdamW refuses the rest.
    Source: Jordan et al., "Muon", 2024; Liu et al., "Muon is Scalable", 2025 (arXiv 2502.16982) for the scale.
    """

    _step_supports_amp_scaling = True  # GradScaler hands over its scale and whether it found an overflow

    def __init__(
        self,
        matrices: Sequence[Tensor],
        rest: Sequence[dict[str, Any]],
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        momentum: float = 0.95,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not matrices:
            raise ValueError("Muon: there must be matrices to train; use AdamW for a model without blocks")
        if any(p.ndim != 2 for p in matrices):
            raise ValueError("Muon: matrices must have two dimensions; leave others to the rest")
        super().__init__([{"params": list(matrices)}], {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for parameter in matrices:
            by_shape.setdefault(parameter.shape, []).append(parameter)
        self.batches = [Matrices(parameters) for parameters in by_shape.values()]
        self.rest = FlatAdamW(rest, lr=lr)
        self.own_group = self.param_groups[0]
        self.param_groups = [self.own_group, *self.rest.param_groups]
        device = self.batches[0].values.device
        self.dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
        self.numbers = DeviceNumbers(self._rows(), device, torch.float32)

    def _update(self) -> None:
        self.send_hyperparameters()
        scale, found_inf = (getattr(self, name, None) for name in ("grad_scale", "found_inf"))
        for batch in self.batches:
            self._update_matrices(batch, scale, found_inf)
        self.rest.grad_scale, self.rest.found_inf = scale, found_inf  # type: ignore[attr-defined]  # as GradScaler does
        self.rest.step()

    def _update_matrices(self, batch: Matrices, scale: Tensor | None, found_inf: Tensor | None) -> None:
        lr, weight_decay, mu = self.numbers.table[0].unbind()
        gradients = batch.gradients()
        if isinstance(scale, Tensor):
            gradients = gradients / scale
        momentum = torch.lerp(gradients, batch.momentum, mu)
        update = orthogonalise(torch.lerp(gradients, momentum, mu), self.dtype)
        values = batch.values * (1 - lr * weight_decay) - update * (lr * batch.scale)
        if isinstance(found_inf, Tensor):  # leave everything as it is
            momentum = torch.where(found_inf > 0, batch.momentum, momentum)
            values = torch.where(found_inf > 0, batch.values, values)
        batch.momentum.copy_(momentum)
        batch.values.copy_(values)

    def send_hyperparameters(self) -> None:
        super().send_hyperparameters()
        self.rest.send_hyperparameters()

    def _rows(self) -> list[tuple[float, ...]]:
        return [tuple(float(self.own_group[name]) for name in ("lr", "weight_decay", "momentum"))]

    def state_dict(self) -> dict[str, Any]:
        """Return the matrices' numbers and momentum (in the order of `batches`), and the state of the rest."""
        numbers = {name: value for name, value in self.own_group.items() if name != "params"}
        return {
            "matrices": numbers | {"momentum_buffers": [batch.momentum.clone() for batch in self.batches]},
            "rest": self.rest.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict`; the parameters are loaded before.

        Raises:
            ValueError: it is the state of another optimizer, or of other matrices.
        """
        if set(state_dict) != {"matrices", "rest"}:
            raise ValueError(f"Muon: expected the state of a Muon, got one with {', '.join(map(str, state_dict))}")
        numbers = dict(state_dict["matrices"])
        momentum = numbers.pop("momentum_buffers")
        shapes = [list(batch.momentum.shape) for batch in self.batches]
        if [list(values.shape) for values in momentum] != shapes:
            raise ValueError(f"Muon: expected the state of matrices {shapes}, got {[list(m.shape) for m in momentum]}")
        self.rest.load_state_dict(state_dict["rest"])
        self.own_group.update(numbers)
        self.param_groups = [self.own_group, *self.rest.param_groups]
        for batch, values in zip(self.batches, momentum, strict=True):
            batch.momentum.copy_(values)
