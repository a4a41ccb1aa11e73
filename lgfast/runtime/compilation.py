"""Apply torch.compile to the networks of a step."""

from __future__ import annotations

from collections.abc import Callable

import torch


def compile_once(function: Callable) -> Callable:
    """Apply torch.compile for all networks of a process: equal ones share the code, others are compiled anew.

    Networks that differ in a number, such as a rate of stochastic depth, or in their taps, are not equal. A sweep may
    need more than the eight forms after which torch falls back to eager execution.

    Args:
        function: takes the network as an argument, so that equal networks are recognised.
    """
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, config.accumulated_recompile_limit)
    config.specialize_float = True  # else the second rate becomes an input that is read from a tensor
    config.skip_nnmodule_hook_guards = False  # else a student with taps may run another's code without them
    return torch.compile(function)


def compiler_failure(error: RuntimeError) -> str | None:
    """Return a message for an error of torch's compiler, for instance a damaged cache file; None for any other
    error."""
    from torch._dynamo.exc import BackendCompilerFailed

    if not isinstance(error, BackendCompilerFailed):
        return None
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    reason = f"{type(error.inner_exception).__name__}: {error.inner_exception}".splitlines()[0]
    return (
        f"step.compile: torch's compiler failed ({reason}); if one of its files is damaged, remove {cache_dir()}, "
        "or use step.compile=off"
    )
