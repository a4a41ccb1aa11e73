"""Let modules be both command lines and functions: `python -m lgfast.train` and `lgfast.train(...)`."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


class Door(ModuleType):
    """A module that passes a call on to the function of its name in lgfast.api, which it imports then."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    @property
    def _function(self) -> Callable[..., Any]:
        return getattr(importlib.import_module("lgfast.api"), self.__name__.rpartition(".")[2])

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._function)


def open_door(name: str) -> None:
    """Make the module of this name callable, by setting its class as Python documents."""
    sys.modules[name].__class__ = Door
