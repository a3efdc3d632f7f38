"""Checks of the fields of frozen dataclasses. A failed one names class, field, value, allowed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from numbers import Integral, Real

__all__ = [
    "check_bool",
    "check_choice",
    "check_fraction",
    "check_names",
    "fail",
    "is_int",
    "is_list",
    "is_one_of",
    "is_real",
    "plain_numbers",
]


LONGEST = 200  # characters of a value in a message; an array's text may have thousands


def fail(owner: object, field: str, allowed: str) -> None:
    got = repr(getattr(owner, field))
    got = got if len(got) <= LONGEST else got[: LONGEST - 1] + "…"
    raise ValueError(f"{type(owner).__name__}.{field}: expected {allowed}; got {got}")


def plain_numbers(owner: object) -> None:
    """Numbers of numpy and the like become Python's, which every JSON writer knows."""
    for field in fields(owner):
        value = getattr(owner, field.name)
        if isinstance(value, Real) and type(value) not in (bool, int, float):
            kind = int if isinstance(value, Integral) else float
            object.__setattr__(owner, field.name, kind(value))


def is_int(value: object, least: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= least


def is_real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def is_list(value: object) -> bool:
    """A sequence that is no text: ``"cat"`` is not meant as ``["c", "a", "t"]``."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def is_one_of(value: object, *allowed: str) -> bool:
    """Also of an array, whose comparison with a word is an array."""
    return isinstance(value, str) and value in allowed


def check_choice(owner: object, field: str, allowed: Sequence[str]) -> None:
    if not is_one_of(getattr(owner, field), *allowed):
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
