"""Check what a field of a frozen dataclass holds: its type, and its range, which an annotation gives.

    lr: Annotated[float, Range(above=0)] = 1e-3

`check_fields` in the class's `__post_init__` refuses everything else, NaN and infinity included.
"""

from __future__ import annotations

import dataclasses
import functools
import numbers
import re
import reprlib
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

FLOAT_MAX = 3.4e38  # the largest number in a tensor of 32 bits
INT_MAX = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, or strictly between `above` and `below`; `text` says it in messages."""

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    text: str = ""

    def holds(self, value: Any) -> bool:
        return (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        low, high, above, below = self.low, self.high, self.above, self.below
        if self.text:
            return self.text
        if below is not None:
            return f"{low} <= value < {below}" if above is None else f"{above} < value < {below}"
        if above is not None:
            return f"a number above {above}" + ("" if high is None else f", up to {high}")
        return f"{low} or more" if high is None else f"{low} to {high}"


@dataclasses.dataclass(frozen=True)
class Text:
    """Text that a pattern matches as a whole."""

    pattern: str
    expected: str

    def holds(self, value: Any) -> bool:
        return re.fullmatch(self.pattern, value) is not None

    def __str__(self) -> str:
        return self.expected


Share = Annotated[float, Range(0, 1)]
Fraction = Annotated[float, Range(above=0, below=1)]
Decay = Annotated[float, Range(0, below=1)]
Positive = Annotated[float, Range(above=0)]
Amount = Annotated[float, Range(0)]
Count = Annotated[int, Range(0, INT_MAX)]
CountFromOne = Annotated[int, Range(1, INT_MAX)]
Index = Annotated[int, Range(-INT_MAX, INT_MAX)]
Seed = Annotated[int, Range(-(2**63), 2**63 - 1, text="a number of 64 bits")]
NotEmpty = Annotated[str, Text(r"(?s).+", "a text that is not empty")]


@functools.cache
def field_types(cls: type, include_extras: bool = False) -> dict[str, Any]:
    """Return the type of each field, with its range if `include_extras`."""
    return get_type_hints(cls, include_extras=include_extras)


def check_fields(section: Any) -> None:
    """Raise a ValueError that names the first field whose value is not what its annotation says."""
    for name, hint in field_types(section.__class__, True).items():
        value = getattr(section, name)
        if expected := misfit(value, hint):
            raise ValueError(f"{name}: expected {expected}, got {shown(value)}")


def misfit(value: Any, hint: Any) -> str | None:
    """Return what `hint` expects, where `value` is not that; None where it is."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return misfit(value, args[0]) or next((str(limit) for limit in args[1:] if not limit.holds(value)), None)
    if NoneType in args:  # X | None
        return None if value is None else misfit(value, args[0])
    if origin is Literal:
        is_one = isinstance(value, str) and value in args
        return None if is_one else f"one of {', '.join(args)}"
    if origin is tuple:
        return misfit_items(value, args)
    return misfit_scalar(value, hint)


def misfit_items(value: Any, types: tuple[Any, ...]) -> str | None:
    """Return `misfit` of a tuple's items; `types` as in tuple[float, float] or tuple[int, ...]."""
    if not isinstance(value, (tuple, list)):
        return "a list of values"
    if types[-1] is not ... and len(value) != len(types):
        return f"{len(types)} values"
    return next((f"{expected} for each item" for item in value if (expected := misfit(item, types[0]))), None)


def misfit_scalar(value: Any, hint: type) -> str | None:
    """Return `misfit` of a number, a truth value, a text or a section."""
    if hint is bool:
        return None if isinstance(value, bool) else "true or false"
    if hint is int:
        is_int = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        return None if is_int else "a whole number"
    if hint is float:
        is_real = isinstance(value, numbers.Real) and not isinstance(value, bool)
        is_finite = is_real and abs(value) <= FLOAT_MAX  # False for NaN
        return None if is_finite else "a finite number" if is_real else "a number"
    if hint is str:
        if not isinstance(value, str):
            return "a text"
        return None if not re.search(r"[\x00-\x1f\x7f]", value) else "a text without control characters"
    return None if isinstance(value, hint) else f"a section ({hint.__name__})"


def shown(value: Any) -> str:
    """Return `repr`, cut to a length that fits an error's line."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 60
    text = short.repr(value)
    return text if len(text) <= 200 else f"{text[:150]}...{text[-40:]}"
