"""AdamW over one flat buffer: every parameter updated by one operation, without a host read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from lgfast.ops.flat_adamw import ALIGN, flat_adamw


class FlatAdamW(torch.optim.Optimizer):
    """torch.optim.AdamW with parameters and moments in flat buffers (`lgfast.ops.flat_adamw`).

    Parameters become views of one float32 buffer, in their order of groups; names, shapes and state dicts stay as they
    are, and state dicts of torch.optim.AdamW load here as this one's load there. Learning rates, the step count and the
    number of skipped steps are tensors on the device, so a captured step follows them. Two steps from equal states are
    equal bit for bit. Move or cast the model before: afterwards its parameters must stay where they are.

    Args:
        params: parameters or groups of them; float32, contiguous, one device. `betas` and `eps` hold for all groups.
        lr: learning rate; each group keeps it as a tensor, written in place.
        weight_decay: decoupled.
        max_norm: clips the global gradient norm; 0: no clipping.
        skip_nonfinite: leave everything as it is in a step with a NaN or infinite gradient, and count it.
    Raises:
        ValueError: a parameter is not contiguous float32; devices, betas or eps differ; lr, weight_decay, betas or eps
            is out of its range.
        RuntimeError: in a step, the parameters have been moved.
    """

    _step_supports_amp_scaling = True  # GradScaler hands over its scale instead of reading back whether to skip

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        max_norm: float = 0.0,
        skip_nonfinite: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.max_norm, self.skip_nonfinite = max_norm, skip_nonfinite
        self.parameters = [p for group in self.param_groups for p in group["params"]]
        self.leaves = self.parameters  # where gradients arrive
        self.low: Tensor | None = None
        self._check()
        self._flatten()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if "flat" in self.__dict__:
            raise ValueError("FlatAdamW: its groups are fixed once it is made; make a new one with all of them")
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("FlatAdamW cannot be copied or pickled; make a new one and load this one's state_dict()")

    def _check(self) -> None:
        first = self.param_groups[0]
        for group in self.param_groups:
            for name in ("lr", "weight_decay", "eps"):
                if not group[name] >= 0:
                    raise ValueError(f"FlatAdamW: {name} must be at least 0, got {group[name]}")
            if not all(0 <= beta < 1 for beta in group["betas"]):
                raise ValueError(f"FlatAdamW: betas must lie in [0, 1), got {group['betas']}")
            for name in ("betas", "eps"):
                if group[name] != first[name]:
                    raise ValueError(
                        f"FlatAdamW: {name} must be the same in every group, got {first[name]}, {group[name]}"
                    )
        for p in self.parameters:
            if p.dtype != torch.float32 or not p.is_contiguous() or p.device != self.parameters[0].device:
                raise ValueError(
                    "FlatAdamW: parameters must be contiguous float32 on one device, got "
                    f"{list(p.shape)} {p.dtype} on {p.device}; use torch.optim.AdamW for others"
                )

    @torch.no_grad()
    def _flatten(self) -> None:
        """Move parameters into one buffer, make the moments beside it, and point the state at both."""
        device = self.parameters[0].device
        self.offsets, total = [], 0
        for p in self.parameters:
            self.offsets.append(total)
            total += -(-p.numel() // ALIGN) * ALIGN
        self.groups = [i for i, group in enumerate(self.param_groups) for _ in group["params"]]
        self.flat, self.exp_avg, self.exp_avg_sq = torch.zeros(3, total, device=device).unbind()
        self.step_count = torch.zeros((), device=device)
        self.num_skipped = torch.zeros((), dtype=torch.int64, device=device)
        self.lr = torch.tensor([float(group["lr"]) for group in self.param_groups], device=device)
        for p, view in zip(self.parameters, self.views(self.flat), strict=True):
            view.copy_(p)
            p.data = view
        self._point_state_at_buffers()

    def _point_state_at_buffers(self) -> None:
        moments = zip(self.parameters, self.views(self.exp_avg), self.views(self.exp_avg_sq), strict=True)
        for p, exp_avg, exp_avg_sq in moments:
            self.state[p] = {"step": self.step_count, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
        self._rates = list(self.lr.unbind())
        for group, lr in zip(self.param_groups, self._rates, strict=True):
            group["lr"] = lr

    def views(self, flat: Tensor) -> list[Tensor]:
        """Each parameter's part of a flat buffer, in its shape."""
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

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._check_place()
        self._follow_rates()
        grads, offsets, groups = [], [], []
        for leaf, offset, group in zip(self.leaves, self.offsets, self.groups, strict=True):
            if leaf.grad is not None:
                grads.append(leaf.grad)
                offsets.append(offset)
                groups.append(group)
        first = self.param_groups[0]
        flat_adamw(
            self.flat,
            grads,
            self.exp_avg,
            self.exp_avg_sq,
            offsets,
            groups,
            self.lr,
            [group["weight_decay"] for group in self.param_groups],
            self.step_count,
            self.num_skipped,
            low=self.low,
            loss_scale=getattr(self, "grad_scale", None),  # set by GradScaler around this call
            betas=first["betas"],
            eps=first["eps"],
            max_norm=self.max_norm,
            skip_nonfinite=self.skip_nonfinite,
        )
        return loss

    def _check_place(self) -> None:
        """A parameter that was moved, as `model.to` does, would no longer be the one that is updated."""
        if self.parameters[0].untyped_storage().data_ptr() != self.flat.untyped_storage().data_ptr():
            raise RuntimeError("FlatAdamW: the parameters were moved or cast after it was made; make it after that")

    def _follow_rates(self) -> None:
        """A scheduler may have put a number in place of a group's tensor."""
        for group, lr in zip(self.param_groups, self._rates, strict=True):
            if group["lr"] is not lr:
                lr.fill_(group["lr"])
                group["lr"] = lr

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        if self.low is not None:
            for leaf in self.leaves:
                leaf.grad = None

    def state_dict(self) -> dict[str, Any]:
        """As torch.optim.AdamW's: every parameter has a step count of its own, since AdamW counts each one up."""
        saved = super().state_dict()
        steps = self.step_count.expand(len(saved["state"])).clone().unbind()
        parts = zip(saved["state"].items(), steps, strict=True)
        return saved | {"state": {number: part | {"step": step} for (number, part), step in parts}}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state of this class or of torch.optim.AdamW; the 16-bit copy follows the parameters."""
        super().load_state_dict(state_dict)
        for flat, name in ((self.exp_avg, "exp_avg"), (self.exp_avg_sq, "exp_avg_sq")):
            for p, view in zip(self.parameters, self.views(flat), strict=True):
                view.copy_(self.state[p][name]) if p in self.state else view.zero_()
        steps = [self.state[p]["step"] for p in self.parameters if p in self.state]
        self.step_count.copy_(torch.as_tensor(steps[0])) if steps else self.step_count.zero_()
        self._follow_rates()
        self._point_state_at_buffers()
        if self.low is not None:
            self.low.copy_(self.flat)
