"""16-bit computation on float32 master parameters, without autocast."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from lgfast import _extension
from lgfast.optim.flat_adamw import FlatAdamW

COMPUTE_DTYPE = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16-amp": torch.float16}


def auto_precision(device: torch.device) -> str:
    """bf16 where the device has instructions for it and they make a step faster, else fp32."""
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:  # oneDNN has them in products and convolutions; the reference ops in PyTorch lose more than those gain
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # which torch 2.11 may lack
        uses_them = torch.backends.mkldnn.is_available() and _extension.has_native()
        has_bf16 = uses_them and capabilities.get("avx512_bf16", False)
    return "bf16" if has_bf16 else "fp32"


class ComputeWeights:
    """Calls a module with 16-bit stand-ins for its parameters and float buffers; the module keeps its float32 ones.

    LayerNorm, softmax and the losses compute in float32 on 16-bit inputs; BatchNorm keeps float32 statistics. With the
    flat AdamW the stand-ins are views of the copy that its update writes, and it reads their gradients in place.

    Args:
        module: float32; evaluated, saved and averaged as it is.
        optimizer: over the module's parameters.
        dtype: of the stand-ins.
        accumulate: backward passes per step; more than one are added up in float32.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, dtype: torch.dtype, accumulate: int = 1):
        self.module, self.dtype = module, dtype
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.masters = list(trained.values())
        self.is_flat = isinstance(optimizer, FlatAdamW)
        if self.is_flat:
            by_master = dict(zip(map(id, optimizer.parameters), optimizer.use_low_precision(dtype), strict=True))
            self.leaves = [by_master[id(p)] for p in self.masters]
        else:
            self.leaves = [p.detach().to(dtype).requires_grad_() for p in self.masters]
        self.feeds_masters = accumulate > 1 or not self.is_flat
        if self.is_flat and self.feeds_masters:
            optimizer.leaves = optimizer.parameters
        self.names = list(trained)
        self.in_batch_norm = set(batch_norm_names(module))
        self.constants = {
            name: tensor.detach().to(dtype)
            for name, tensor in untrained_tensors(module)
            if name not in self.in_batch_norm and tensor.is_floating_point()
        }

    def __call__(self, images: Tensor, *args: Any) -> Any:
        stand_ins = {
            name: leaf.float() if name in self.in_batch_norm else leaf
            for name, leaf in zip(self.names, self.leaves, strict=True)
        }
        return functional_call(self.module, stand_ins | self.constants, (images.to(self.dtype), *args))

    @property
    def receivers(self) -> list[Tensor]:
        """Where the gradients of a step are found after `collect`."""
        return self.masters if self.feeds_masters else self.leaves

    @torch.no_grad()
    def collect(self) -> None:
        """Move a backward pass's gradients to the masters, where the optimizer looks for them there."""
        if not self.feeds_masters:
            return
        for master, leaf in zip(self.masters, self.leaves, strict=True):
            if leaf.grad is not None:
                master.grad = leaf.grad.float() if master.grad is None else master.grad + leaf.grad
                leaf.grad = None

    @torch.no_grad()
    def follow(self) -> None:
        """Round the masters into the stand-ins; the flat AdamW has done so in its update."""
        if not self.is_flat:
            torch._foreach_copy_(self.leaves, self.masters)


def batch_norm_names(module: nn.Module) -> Iterator[str]:
    """Names of the parameters and buffers of BatchNorm layers."""
    for prefix, child in module.named_modules():
        if isinstance(child, _BatchNorm):
            for name, _ in (*child.named_parameters(recurse=False), *child.named_buffers(recurse=False)):
                yield f"{prefix}.{name}" if prefix else name


def untrained_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Frozen parameters and buffers."""
    yield from ((name, p) for name, p in module.named_parameters() if not p.requires_grad)
    yield from module.named_buffers()
