"""Whether a module may be skipped and its weights used in its place: only where calling it would do nothing else."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as torch_module

from lgfast.ops.once import warn_once


def not_plain_reason(module: nn.Module, *kinds: type[nn.Module]) -> str | None:
    """What keeps a module from being exactly of one of these classes, without hooks and with its class's forward.

    Parametrizations, quantization and most adapters give a module another class, pruning and weight norm a hook, and
    other adapters a forward of its own. Cheap enough for every call.
    """
    if type(module) not in kinds:
        return f"got {type(module).__name__}"
    if (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    ):
        return "got one that has hooks"
    return "got one with a forward of its own" if "forward" in module.__dict__ else None


def is_plain(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    return not_plain_reason(module, *kinds) is None


def warn_of_original(module: nn.Module, reason: str) -> None:
    """Warn once for each reason and class that fused modules run as they did before they were fused."""
    warn_once(f"{type(module).__name__} runs its original forward, unfused: {reason}")
