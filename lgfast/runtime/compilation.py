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
