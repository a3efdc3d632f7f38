"""``--methods``: several methods in one word, each with its options in parentheses."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

from cmlora_fast.eval.samples import clora_for

from .errors import CliError
from .method_options import METHODS, make_method

__all__ = ["NO_LORA", "cached", "parse_methods"]

NO_LORA = "no_lora"  # the base model with the full prompt
_OUTSIDE = re.compile(r",(?![^(]*\))")  # a comma that no parentheses hold
_BEFORE_KEY = re.compile(r",(?=\s*\w+=)")  # names in a list are separated by commas, too


def parse_methods(text: str, clora: bool = False) -> dict[str, Any]:
    """Label -> instance, e.g. of ``no_lora,merge,cmlora(cache_interval=3,decay=frozen)``.

    A label is the text as it was given; ``no_lora`` means None here, and so does ``none``.
    With ``clora`` that method is allowed, as a function of the combination that it composes.
    """
    methods: dict[str, Any] = {}
    for label in (part.strip() for part in _OUTSIDE.split(text)):
        name, parenthesis, inside = label.partition("(")
        if parenthesis and not inside.endswith(")"):
            raise CliError(f"--methods: expected name or name(key=value,…); got {label!r}")
        options = [o.strip() for o in _BEFORE_KEY.split(inside[:-1])] if inside[:-1] else []
        if name not in (NO_LORA, *METHODS):
            known = ", ".join((NO_LORA, *METHODS))
            raise CliError(f"--methods: expected some of {known}; got {label!r}")
        if label in methods:
            raise CliError(f"--methods: {label!r} is there twice")
        if name == "clora":
            if not clora:
                raise CliError("--methods: clora needs concepts here; see cmlora generate, or eval")
            methods[label] = partial(clora_for, make_method(name, options, ["any=any"]))
        else:
            methods[label] = make_method("none" if name == NO_LORA else name, options)
    return methods


def cached(methods: dict[str, Any], intervals: Sequence[str]) -> dict[str, Any]:
    """Every method at every cache interval (1 and more, or "nonuniform"); none given: as it is.

    Methods that have no cache stay as they are.
    """
    if not intervals:
        return methods
    numbers: list[Any] = []
    for text in intervals:
        if text not in ("nonuniform", "0") and not (text.isdigit() and int(text) >= 1):
            raise CliError(f"--interval: expected integers >= 1 or nonuniform; got {text!r}")
        # The released scripts write 0 for the non-uniform schedule.
        numbers.append("nonuniform" if text in ("nonuniform", "0") else int(text))
    swept: dict[str, Any] = {}
    for label, method in methods.items():
        if not hasattr(method, "cache_interval"):
            swept[label] = method
            continue
        for number in numbers:
            swept[f"{label} k={number}"] = dataclasses.replace(method, cache_interval=number)
    return swept
