"""``--method``, ``--method-option``, ``--concept`` and ``--mask`` as an instance of a method."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from cmlora_fast import methods
from cmlora_fast.methods.clora import Concept

from .errors import CliError

__all__ = ["METHODS", "make_method"]

METHODS: dict[str, type | None] = {"none": None, **methods.METHODS}  # none: lossless
_WORDS = {"none": None, "true": True, "false": False}
_LISTS = ("low_frequency", "style_adapters")  # fields that take names separated by commas
# Fields that no word on a command line can be.
_OBJECTS = ("rows", "concepts", "masks", "row_prompt_embeds", "row_negative_prompt_embeds")


def make_method(
    name: str, options: Sequence[str], concepts: Sequence[str] = (), masks: Sequence[str] = ()
) -> Any:
    """The method's instance, or None for "none".

    Args:
        name: One of METHODS.
        options: Fields as key=value.
        concepts: CLoRA's, as adapter=subject or adapter=subject:trigger.
        masks: As adapter=path of a picture.

    Raises:
        CliError: An unknown method, option or form; a bad value is the class's own ValueError.
    """
    if name not in METHODS:
        raise CliError(f"--method: expected one of {', '.join(METHODS)}; got {name!r}")
    if concepts and name != "clora":
        raise CliError(f"--concept: only --method clora has concepts; got --method {name}")
    cls = METHODS[name]
    if cls is None:
        if options:
            raise CliError(f"--method-option {options[0]}: --method none has no options")
        if masks:
            raise CliError(f"--mask {masks[0]}: --method none has no masks")
        return None
    fields = [field.name for field in dataclasses.fields(cls)]
    allowed = [name for name in fields if name not in _OBJECTS]
    values: dict[str, Any] = dict(_field(option, cls.__name__, allowed) for option in options)
    if name == "clora":
        if not concepts:
            raise CliError("--method clora: expected --concept adapter=subject[:trigger]; got none")
        values["concepts"] = [_concept(text) for text in concepts]
    if masks and "masks" not in fields:
        raise CliError(f"--mask: {cls.__name__} has no masks")
    if masks:
        values["masks"] = dict(_mask(text) for text in masks)
    return cls(**values)


def _field(option: str, cls: str, allowed: Sequence[str]) -> tuple[str, Any]:
    key, equals, text = option.partition("=")
    if not equals or not key:
        raise CliError(f"--method-option: expected key=value; got {option!r}")
    if key not in allowed:
        known = ", ".join(allowed)
        raise CliError(
            f"--method-option {option}: {cls} has no field {key!r}; expected one of {known}"
        )
    return key, _value(key, text)


def _concept(text: str) -> Concept:
    adapter, equals, words = text.partition("=")
    subject, _, trigger = words.partition(":")
    if not equals or not adapter.strip() or not subject.strip():
        raise CliError(f"--concept: expected adapter=subject[:trigger]; got {text!r}")
    return Concept(adapter.strip(), subject.strip(), trigger.strip())


def _mask(text: str) -> tuple[str, Any]:
    from PIL import Image

    adapter, equals, path = text.partition("=")
    if not equals or not adapter.strip():
        raise CliError(f"--mask: expected adapter=picture; got {text!r}")
    try:
        with Image.open(path) as picture:
            return adapter.strip(), picture.convert("L")
    except OSError as error:  # also of a file that is no picture
        raise CliError(f"--mask {path}: cannot be read: {error.strerror or error}") from error


def _value(key: str, text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if key in _LISTS:
        return [name.strip() for name in text.split(",") if name.strip()]
    try:
        return json.loads(text)
    except ValueError:
        return text
