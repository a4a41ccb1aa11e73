"""The operations under torch.func and exporters: which they serve, and their rule for torch.vmap."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree


def is_transformed() -> bool:
    """Whether a transform of torch.func is at work, torch.vmap included."""
    return not torch.compiler.is_compiling() and bool(get_interpreter_stack())


def needs_composition() -> bool:
    """Whether PyTorch's own operations must do the work of lgfast's here.

    torch.func.grad, torch.func.jvp and forward-mode autograd serve no registered operations (torch 2.14: the first
    fails, the others give zero in silence), and what TorchScript's tracer and the exporters to ONNX write should run
    elsewhere. torch.export keeps the operations.
    """
    if torch.compiler.is_exporting():
        return torch.onnx.is_in_onnx_export()
    if torch.compiler.is_compiling():
        return False
    transforms = get_interpreter_stack() or ()
    is_differentiated = forward_ad._current_level >= 0 or any(one.key() != TransformType.Vmap for one in transforms)
    return is_differentiated or torch.jit.is_tracing()


def vmap_loop(op_name: str) -> Callable:
    """The rule for torch.vmap of an operation whose results do not begin with the batch: one call per element."""
    op = getattr(torch.ops.lgfast, op_name)

    def rule(info, in_dims, *args):
        dims = pytree.tree_leaves(in_dims, is_leaf=lambda dim: dim is None)
        leaves, spec = pytree.tree_flatten(args)

        def element(i: int):
            chosen = [x if dim is None else x.select(dim, i) for x, dim in zip(leaves, dims, strict=True)]
            return op(*pytree.tree_unflatten(chosen, spec))

        results = [element(i) for i in range(info.batch_size)]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        stacked = tuple(map(torch.stack, zip(*results, strict=True)))
        return stacked, (0,) * len(stacked)

    return rule


def register_vmap_loop(op_name: str) -> None:
    torch.library.register_vmap(f"lgfast::{op_name}", vmap_loop(op_name))
