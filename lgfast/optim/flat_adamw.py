"""AdamW over one flat buffer: every parameter updated by one operation, without a host read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lgfast.ops.flat_adamw import ALIGN, flat_adamw, hyperparameter_row
from lgfast.optim.contract import STATE, check_groups, check_state
from lgfast.optim.device_numbers import DeviceNumbers, DeviceOptimizer


class FlatAdamW(DeviceOptimizer):
    """torch.optim.AdamW with parameters and moments in flat buffers (`lgfast.ops.flat_adamw`).

    Parameters become views of one float32 buffer, in their order of groups; names and shapes stay, and state dicts of
    torch.optim.AdamW load here as this one's load there. Groups hold numbers, each its own, as torch.optim.AdamW's do;
    a step brings them to the device where they changed, so schedulers and code that read and write them work alike.
    Step counts and the number of skipped steps live on the device. torch.amp.GradScaler skips a step with an overflow
    there, without a host read. Two steps from equal states are equal bit for bit.

    In a captured CUDA graph, `step` reads the numbers that were sent last: call `send_hyperparameters` before a replay.
    Move or cast the model before: afterwards its parameters must stay where they are. `add_param_group`, copies and
    unpickling make new buffers, so capture after them.

    Args:
        params: parameters or groups of them; float32, contiguous, one device, no memory in common.
        lr: learning rate. A tensor is read in every step.
        betas: decay rates of the first and second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled.
        amsgrad: True is refused.
        maximize: step along the gradient instead of against it.
        foreach: chooses among torch's implementations; without effect here.
        capturable: likewise.
        differentiable: True is refused.
        fused: as foreach.
        max_norm: clips the global gradient norm; 0: no clipping.
        skip_nonfinite: leave everything as it is in a step with a NaN or infinite gradient, and count it.
    Attributes:
        num_skipped: one int64 on the device, steps that were skipped.
    Raises:
        ValueError: here, in `add_param_group` and in `load_state_dict`: what it cannot do as torch.optim.AdamW does.
        RuntimeError: in a step, the parameters have been moved.

    >>> model = torch.nn.Linear(4, 2)
    >>> optimizer = FlatAdamW(model.parameters(), lr=1e-3, max_norm=1.0)
    >>> model(torch.randn(8, 4)).sum().backward()
    >>> optimizer.step()
    >>> optimizer.num_skipped.item()
    0
    """

    _step_supports_amp_scaling = True  # GradScaler hands over its scale and whether it found an overflow

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        max_norm: float = 0.0,
        skip_nonfinite: bool = False,
    ) -> None:
        self.max_norm, self.skip_nonfinite = max_norm, skip_nonfinite
        numbers = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        switches = {"foreach": foreach, "capturable": capturable, "fused": fused}
        refused = {"amsgrad": amsgrad, "differentiable": differentiable}
        super().__init__(params, numbers | switches | refused)
        self._lay_out()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """torch's `add_param_group`; parameters and moments move into larger buffers."""
        is_made = "flat" in self.__dict__
        if is_made and self.low is not None:
            raise ValueError("FlatAdamW: no group can be added once a 16-bit copy is in use; make a new one with all")
        super().add_param_group(param_group)
        try:
            check_groups(self.param_groups)
        except ValueError:
            self.param_groups.pop()
            raise
        if is_made:
            self._lay_out()

    def __getstate__(self) -> dict[str, Any]:
        if self.low is not None:
            raise TypeError(
                "FlatAdamW cannot be copied or pickled once a 16-bit copy is in use; make a new one and load this "
                "one's state_dict()"
            )
        own = ("max_norm", "skip_nonfinite", "num_skipped")
        return super().__getstate__() | {name: getattr(self, name) for name in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what `load_state_dict`, a copy or a pickle brings, or leave everything as it was."""
        check_groups(state["param_groups"])
        check_state(state["state"])
        super().__setstate__(state)
        for group in self.param_groups:
            group["lr"] = float(group["lr"])
        if "flat" in self.__dict__:
            self._take_state()
        else:
            self._lay_out()

    @torch.no_grad()
    def _lay_out(self) -> None:
        """Move parameters into one buffer, and make the moments beside it."""
        self.parameters = [p for group in self.param_groups for p in group["params"]]
        self.leaves = self.parameters  # where gradients arrive
        self.low: Tensor | None = None
        self.groups = [i for i, group in enumerate(self.param_groups) for _ in group["params"]]
        device = self.parameters[0].device if self.parameters else torch.device("cpu")
        self.offsets, total = [], 0
        for p in self.parameters:
            self.offsets.append(total)
            total += -(-p.numel() // ALIGN) * ALIGN
        self.flat, self.exp_avg, self.exp_avg_sq = torch.zeros(3, total, dtype=torch.float32, device=device).unbind()
        self.steps = torch.zeros(len(self.parameters), dtype=torch.float32, device=device)
        if "num_skipped" not in self.__dict__:
            self.num_skipped = torch.zeros((), dtype=torch.int64, device=device)
        self.numbers = DeviceNumbers(self._rows(), device, torch.float64)
        for p, view in zip(self.parameters, self.views(self.flat), strict=True):
            view.copy_(p)
            p.data = view
        self._addresses = [p.data_ptr() for p in self.parameters]
        self._take_state()

    @torch.no_grad()
    def _take_state(self) -> None:
        """Copy the state of every parameter into the buffers, zero where there is none, and make it a view of them."""
        views = zip(self.steps.unbind(), self.views(self.exp_avg), self.views(self.exp_avg_sq), strict=True)
        for p, buffers in zip(self.parameters, views, strict=True):
            known = self.state.get(p, {})
            for name, buffer in zip(STATE, buffers, strict=True):
                buffer.copy_(torch.as_tensor(known.get(name, 0.0)))
            self.state[p] = dict(zip(STATE, buffers, strict=True))
        if self.low is not None:
            self.low.copy_(self.flat)

    def views(self, flat: Tensor) -> list[Tensor]:
        """Return each parameter's part of a flat buffer, in the parameter's shape."""
        return [flat[o : o + p.numel()].view_as(p) for p, o in zip(self.parameters, self.offsets, strict=True)]

    @torch.no_grad()
    def use_low_precision(self, dtype: torch.dtype, takes_gradients: bool = True) -> list[Tensor]:
        """Keep a 16-bit copy of the parameters.

        Args:
            takes_gradients: from the copy, instead of from the parameters.
        Returns:
            Leaves in the order of `self.parameters`, views of one flat buffer that every step rewrites.
        """
        self.low = self.flat.to(dtype)
        copies = [view.requires_grad_() for view in self.views(self.low)]
        if takes_gradients:
            self.leaves = copies
        return copies

    def _update(self) -> None:
        self._check_addresses()
        grads = [leaf.grad for leaf in self.leaves]
        if any(grad is not None and grad.layout is not torch.strided for grad in grads):
            raise RuntimeError("FlatAdamW does not support sparse gradients; use torch.optim.SparseAdam for them")
        self.send_hyperparameters()
        loss_scale, found_inf = (self._from_scaler(name) for name in ("grad_scale", "found_inf"))
        flat_adamw(
            self.flat,
            grads,
            self.exp_avg,
            self.exp_avg_sq,
            self.offsets,
            self.groups,
            self.numbers.table,
            self.steps,
            self.num_skipped,
            low=self.low,
            loss_scale=loss_scale,
            found_inf=found_inf,
            max_norm=self.max_norm,
            # GradScaler looks at the parameters' gradients, and does not see those of 16-bit leaves.
            skip_nonfinite=self.skip_nonfinite or (loss_scale is not None and found_inf is None),
        )

    def _from_scaler(self, name: str) -> Tensor | None:
        """Return the tensor that GradScaler sets around a step, or None; where it saw no gradient it sets a number."""
        value = getattr(self, name, None)
        return value.to(self.flat.device, non_blocking=True) if isinstance(value, Tensor) else None

    def _rows(self) -> list[tuple[float, ...]]:
        names = ("lr", "weight_decay", "betas", "eps")
        return [
            hyperparameter_row(**{name: group[name] for name in names}, maximize=group.get("maximize", False))
            for group in self.param_groups
        ]

    def _check_addresses(self) -> None:
        """Raise where a parameter was moved, as by `model.to`: the optimizer would update memory that nobody reads."""
        if [p.data_ptr() for p in self.parameters] != self._addresses:
            raise RuntimeError("FlatAdamW: the parameters were moved or cast after it was made; make it after that")

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        if self.low is not None:
            for leaf in self.leaves:
                leaf.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return the state dict of torch.optim.AdamW, with the step counts on the host."""
        saved, steps = super().state_dict(), self.steps.cpu()
        return saved | {"state": {number: part | {"step": steps[number]} for number, part in saved["state"].items()}}
