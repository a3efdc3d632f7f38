"""``--method`` and ``--method-option key=value`` as an instance of a method."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from .errors import CliError

__all__ = ["METHODS", "make_method"]

# Name -> class in cmlora_fast; "none" is the lossless mode.
METHODS = {
    "none": None,
    "merge": "Merge",
    "switch": "Switch",
    "composite": "Composite",
    "cmlora": "CMLoRA",
}
_WORDS = {"none": None, "true": True, "false": False}
_LISTS = ("low_frequency",)  # fields that take names separated by commas


def make_method(name: str, options: Sequence[str]) -> Any:
    """The method's instance, or None for "none".

    Raises:
        CliError: An unknown method, option or form; a bad value is the class's own ValueError.
    """
    if name not in METHODS:
        raise CliError(f"--method: expected one of {', '.join(METHODS)}; got {name!r}")
    if METHODS[name] is None:
        if options:
            raise CliError(f"--method-option {options[0]}: --method none has no options")
        return None
    import cmlora_fast as cf

    cls = getattr(cf, METHODS[name])
    allowed = [field.name for field in dataclasses.fields(cls)]
    values = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals or not key:
            raise CliError(f"--method-option: expected key=value; got {option!r}")
        if key not in allowed:
            raise CliError(
                f"--method-option {option}: {cls.__name__} has no field {key!r}; expected one of "
                + ", ".join(allowed)
            )
        values[key] = _value(key, text)
    return cls(**values)


def _value(key: str, text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if key in _LISTS:
        return [name.strip() for name in text.split(",") if name.strip()]
    try:
        return json.loads(text)
    except ValueError:
        return text
