"""The ranges of numbers in a configuration, written beside the fields they belong to.

`Annotated[int, Range(1)]` is a whole number of at least 1. `check_ranges` holds a configuration
against its annotations before any work begins.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Range:
    """The finite numbers from `low` to `high`, both included unless they are said to be `open`.

    Of a list, such as `Annotated[list[str], Range(1)]`, it is the length.
    """

    low: float
    high: float = math.inf
    open: Literal["", "low", "high", "both"] = ""

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open in ("low", "both") else value >= self.low
        below = value < self.high if self.open in ("high", "both") else value <= self.high
        return math.isfinite(value) and above and below

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"above {self.low:g}" if self.open else f"at least {self.low:g}"
        left = "(" if self.open in ("low", "both") else "["
        right = ")" if self.open in ("high", "both") else "]"
        return f"in {left}{self.low}, {self.high}{right}"


LARGEST = 2**31 - 1
"""Of whole numbers without an upper limit: what every library below can count."""
Count = Annotated[int, Range(1)]
Number = Annotated[int, Range(0)]
LAST_SEED = 2**32 - 1
Seed = Annotated[int, Range(0, LAST_SEED)]
"""What NumPy, PyTorch and the Trainer all take."""
Rate = Annotated[float, Range(0, open="low")]
Decay = Annotated[float, Range(0)]
Dropout = Annotated[float, Range(0, 1, open="high")]


def check_ranges(section: Any, prefix: str = "") -> None:
    """Refuse numbers outside the ranges of their fields, and lists of another length.

    Args:
        section: A dataclass, whose fields may be dataclasses too.
        prefix: What stands before a field's name in a message, such as `adapt.`.

    Raises:
        ValueError: A value is out of its range; the message names the field and the range.
    """
    for name, hint in get_type_hints(type(section), include_extras=True).items():
        value, full = getattr(section, name), f"{prefix}{name}"
        if is_dataclass(value):
            check_ranges(value, f"{full}.")
        else:
            _check(value, hint, full)


def _check(value: Any, hint: Any, name: str) -> None:
    if get_origin(hint) in (Union, UnionType):
        options = [one for one in get_args(hint) if one is not NoneType]
        if value is not None and len(options) == 1:
            _check(value, options[0], name)
        return
    if get_origin(hint) is list and isinstance(value, list):
        for one in value:
            _check(one, get_args(hint)[0], f"{name}, which holds {one!r},")
    for found in _ranges(hint):
        _hold(value, get_args(hint)[0], found, name)


def _hold(value: Any, kind: Any, found: Range, name: str) -> None:
    shown = name if name.endswith(",") else f"{name}={value!r}"
    if get_origin(kind) is list:
        _check(value, kind, name)
        if len(value) not in found:
            raise ValueError(f"{shown} must name {found}")
        return
    number = isinstance(value, int if kind is int else (int, float))
    if isinstance(value, bool) or not number:
        raise ValueError(f"{shown} must be a {'whole ' if kind is int else ''}number, {found}")
    if kind is int and found.high == math.inf and value > LARGEST:
        raise ValueError(f"{shown} must be at most {LARGEST}")
    if value not in found:
        raise ValueError(f"{shown} must be {found}")


def _ranges(hint: Any) -> Iterator[Range]:
    if get_origin(hint) is Annotated:
        yield from (one for one in get_args(hint)[1:] if isinstance(one, Range))
