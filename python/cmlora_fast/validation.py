"""Checks of the fields of frozen dataclasses. A failed one names class, field, value, allowed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real

__all__ = [
    "check_bool",
    "check_choice",
    "check_fraction",
    "check_names",
    "fail",
    "is_int",
    "is_list",
    "is_real",
]


def fail(owner: object, field: str, allowed: str) -> None:
    value = getattr(owner, field)
    raise ValueError(f"{type(owner).__name__}.{field}: expected {allowed}; got {value!r}")


def is_int(value: object, least: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= least


def is_real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def is_list(value: object) -> bool:
    """A sequence that is no text: ``"cat"`` is not meant as ``["c", "a", "t"]``."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def check_choice(owner: object, field: str, allowed: Sequence[str]) -> None:
    if getattr(owner, field) not in allowed:
        fail(owner, field, "one of " + ", ".join(repr(name) for name in allowed))


def check_bool(owner: object, *names: str) -> None:
    for name in names:
        if not isinstance(getattr(owner, name), bool):
            fail(owner, name, "True or False")


def check_fraction(owner: object, field: str) -> None:
    value = getattr(owner, field)
    if not (is_real(value) and 0 <= value <= 1):
        fail(owner, field, "a number in [0, 1]")


def check_names(owner: object, field: str) -> None:
    """``None`` or a sequence of adapter names, stored as a tuple."""
    value = getattr(owner, field)
    if value is None:
        return
    if not (is_list(value) or isinstance(value, set | frozenset)):
        fail(owner, field, "None or a list of adapter names")
    if not all(isinstance(name, str) for name in value):
        fail(owner, field, "None or a list of adapter names")
    object.__setattr__(owner, field, tuple(value))
