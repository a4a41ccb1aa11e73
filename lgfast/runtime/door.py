"""Modules that are command lines and may be called as functions: `python -m lgfast.train` and `lgfast.train(...)`."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


class Door(ModuleType):
    """A module that passes a call on to the function of its name in lgfast.api, which is imported then."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    @property
    def _function(self) -> Callable[..., Any]:
        return getattr(importlib.import_module("lgfast.api"), self.__name__.rpartition(".")[2])

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._function)


def open_door(name: str) -> None:
    """Let the module of this name be called (Python's documented way: its class is set)."""
    sys.modules[name].__class__ = Door
