"""torch.compile for the networks of a step."""

from __future__ import annotations

from collections.abc import Callable

import torch


def compile_once(function: Callable) -> Callable:
    """torch.compile for all networks of a process: equal ones share the code, others are compiled anew.

    A number may make the difference, as students' rates of stochastic depth do, and so may feature taps. So a sweep
    comes to more forms than the eight after which torch falls back to eager execution.

    Args:
        function: takes the network as an argument, for equal ones to be seen as such.
    """
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, config.accumulated_recompile_limit)
    config.specialize_float = True  # else the second rate becomes an input, read back from a tensor
    config.skip_nnmodule_hook_guards = False  # else a student with taps may run the code of one without
    return torch.compile(function)


def compiler_failure(error: RuntimeError) -> str | None:
    """What to tell of an error of torch's compiler, as where a file of its cache is damaged; None for any other."""
    from torch._dynamo.exc import BackendCompilerFailed

    if not isinstance(error, BackendCompilerFailed):
        return None
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    reason = f"{type(error.inner_exception).__name__}: {error.inner_exception}".splitlines()[0]
    return (
        f"step.compile: torch's compiler failed ({reason}); if one of its files is damaged, remove {cache_dir()}, "
        "or use step.compile=off"
    )
