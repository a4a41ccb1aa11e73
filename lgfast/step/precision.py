"""In which type a step computes: float32, bfloat16 on float32 masters without autocast, or float16 under autocast."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from lgfast.ops import unit_gradient
from lgfast.optim.flat_adamw import FlatAdamW
from lgfast.runtime import ranks


class Float32:
    """How a step computes gradients and updates: in the parameters' own type. Other precisions override what differs.

    Args:
        student: is trained; evaluated, saved and averaged as it is.
        optimizer: over its parameters.
        accumulate: backward passes per update.
        clip_norm: global gradient norm before the update; 0: no clipping here.
    """

    dtype = torch.float32  # to evaluate the student in
    exchanges_after_backward = False  # ranks average their gradients during it, by DistributedDataParallel

    def __init__(
        self, student: nn.Module, optimizer: torch.optim.Optimizer, accumulate: int = 1, clip_norm: float = 0.0
    ) -> None:
        self.student, self.optimizer, self.clip_norm = student, optimizer, clip_norm
        self.distribute()

    def distribute(self) -> None:
        """Average the gradients of what is trained now over the ranks."""
        self.forward = ranks.distribute(self.student)

    def __call__(self, images: Tensor, *args: Any) -> Any:
        """Call the student."""
        return self.forward(images, *args)

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradients to those of this update."""
        loss.backward(unit_gradient(loss))

    def update(self) -> None:
        """One optimizer step on the gradients."""
        self.clip()
        self.optimizer.step()

    def clip(self) -> None:
        if self.clip_norm > 0:
            nn.utils.clip_grad_norm_(self.receivers, self.clip_norm)

    @property
    def receivers(self) -> list[Tensor]:
        """The tensors whose gradients the optimizer reads."""
        return list(self.student.parameters())

    def follow(self) -> None:
        """Take over parameters that were loaded."""

    def state_dict(self) -> dict[str, Any]:
        """Return what an exact continuation needs beside the parameters."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`; the parameters are loaded before."""
        self.follow()


class Float16Autocast(Float32):
    """float16 where autocast thinks it safe, with a loss scale that the gradients' overflows lower."""

    dtype = torch.float16

    def __init__(self, student: nn.Module, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
        super().__init__(student, optimizer, *args, **kwargs)
        self.device_type = next(student.parameters()).device.type
        self.scaler = torch.amp.GradScaler(self.device_type)

    def __call__(self, images: Tensor, *args: Any) -> Any:
        with torch.autocast(self.device_type, torch.float16):
            return self.forward(images, *args)

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def update(self) -> None:
        if self.clip_norm > 0:
            self.scaler.unscale_(self.optimizer)
        self.clip()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scaler.load_state_dict(state)


class BFloat16Copy(Float32):
    """Calls the student with bfloat16 stand-ins for its parameters and float buffers; it keeps its float32 ones.

    LayerNorm, softmax and the losses compute in float32 on 16-bit inputs; BatchNorm keeps float32 statistics. With the
    flat AdamW the stand-ins are views of the copy that its update writes, and it reads their gradients in place. More
    than one backward pass per update are added up in float32.
    """

    dtype = torch.bfloat16
    exchanges_after_backward = True  # in `update`, on the step's own stream

    def __init__(
        self, student: nn.Module, optimizer: torch.optim.Optimizer, accumulate: int = 1, clip_norm: float = 0.0
    ) -> None:
        self.student, self.optimizer, self.clip_norm = student, optimizer, clip_norm
        trained = {name: p for name, p in student.named_parameters() if p.requires_grad}
        self.names, self.masters = list(trained), list(trained.values())
        self.flat = optimizer if isinstance(optimizer, FlatAdamW) else None
        self.feeds_masters = accumulate > 1 or self.flat is None
        if self.flat is not None:
            copies = self.flat.use_low_precision(self.dtype, takes_gradients=not self.feeds_masters)
            by_master = dict(zip(map(id, self.flat.parameters), copies, strict=True))
            self.leaves = [by_master[id(p)] for p in self.masters]
        else:
            self.leaves = [p.detach().to(self.dtype).requires_grad_() for p in self.masters]
        self.in_batch_norm = set(batch_norm_names(student))
        self.constants = {
            name: tensor.detach().to(self.dtype)
            for name, tensor in untrained_tensors(student)
            if name not in self.in_batch_norm and tensor.is_floating_point()
        }

    def __call__(self, images: Tensor, *args: Any) -> Any:
        stand_ins = {
            name: leaf.float() if name in self.in_batch_norm else leaf
            for name, leaf in zip(self.names, self.leaves, strict=True)
        }
        return functional_call(self.student, stand_ins | self.constants, (images.to(self.dtype), *args))

    def backward(self, loss: Tensor) -> None:
        loss.backward(unit_gradient(loss))
        if self.feeds_masters:
            self.collect()

    def distribute(self) -> None:
        """Nothing to do: `update` averages whatever gradients there are."""

    @torch.no_grad()
    def collect(self) -> None:
        """Move a backward pass's gradients to the masters, where the optimizer looks for them then."""
        for master, leaf in zip(self.masters, self.leaves, strict=True):
            if leaf.grad is not None:
                master.grad = leaf.grad.float() if master.grad is None else master.grad + leaf.grad
                leaf.grad = None

    @property
    def receivers(self) -> list[Tensor]:
        return self.masters if self.feeds_masters else self.leaves

    def update(self) -> None:
        ranks.average_gradients(self.receivers)  # which bypass DistributedDataParallel
        super().update()
        self.follow()

    @torch.no_grad()
    def follow(self) -> None:
        """Round the masters into the stand-ins; the flat AdamW has done so in its update."""
        if self.flat is None:
            torch._foreach_copy_(self.leaves, self.masters)


PRECISIONS = {"fp32": Float32, "bf16": BFloat16Copy, "fp16-amp": Float16Autocast}
COMPUTE_DTYPE = {name: precision.dtype for name, precision in PRECISIONS.items()}


def batch_norm_names(module: nn.Module) -> Iterator[str]:
    """Names of the parameters and buffers of BatchNorm layers."""
    for prefix, child in module.named_modules():
        if isinstance(child, _BatchNorm):
            for name, _ in (*child.named_parameters(recurse=False), *child.named_buffers(recurse=False)):
                yield f"{prefix}.{name}" if prefix else name


def untrained_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The model's frozen parameters and buffers."""
    yield from ((name, p) for name, p in module.named_parameters() if not p.requires_grad)
    yield from module.named_buffers()
