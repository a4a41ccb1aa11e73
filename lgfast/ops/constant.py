"""Functions whose result torch's compiler may take as constant."""

from collections.abc import Callable
from typing import TypeVar

Function = TypeVar("Function", bound=Callable)


def assume_constant_result(function: Function) -> Function:
    """`torch.compiler.assume_constant_result`, which loads the whole compiler only to set this mark."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]  # the mark that Dynamo looks for
    return function
