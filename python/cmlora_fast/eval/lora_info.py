"""ComposLoRA's ``{style}_lora_info.json``: categories and their LoRAs, checked line by line."""

from __future__ import annotations

import json
import re
from bisect import bisect
from json.decoder import scanstring
from pathlib import Path
from reprlib import repr as short
from typing import Annotated, Any

from pydantic import BaseModel, StringConstraints, TypeAdapter, ValidationError, model_validator

__all__ = ["LoraEntry", "read_lora_info"]

Text = Annotated[str, StringConstraints(min_length=1, strict=True)]
SPACE = " \t\r\n"
DEEPEST = 4  # of the format: category, number, "trigger", number


class LoraEntry(BaseModel, frozen=True):
    """One LoRA of a testbed: ``id`` is ``<category>_<number>``."""

    id: Annotated[Text, StringConstraints(pattern=r"^[A-Za-z][\w-]*_\d+$")]
    name: Text
    trigger: Annotated[tuple[Text, ...], "words of the prompt"]
    url: str = ""

    @property
    def category(self) -> str:
        return self.id.rpartition("_")[0]

    @model_validator(mode="after")
    def _called(self) -> LoraEntry:
        if not self.trigger:
            raise ValueError("trigger: expected at least one word")
        return self


_Info = TypeAdapter(dict[str, list[LoraEntry]])


def read_lora_info(path: str | Path) -> dict[str, list[LoraEntry]]:
    """Category -> its LoRAs, in the order of the file.

    Raises:
        ValueError: Not there, not JSON or not in the format; names the key and the line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not JSON: {error.msg}") from error
    except RecursionError:
        raise ValueError(f"{path}: nested too deeply") from None
    except ValueError as error:  # numbers of thousands of digits
        raise ValueError(f"{path}: not JSON: {error}") from error
    try:
        info = _Info.validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise _malformed(path, text, first["loc"], _expected(first)) from error
    seen: dict[str, str] = {}
    for category, entries in info.items():
        for index, entry in enumerate(entries):
            place = (category, index, "id")
            if entry.category != category:
                raise _malformed(path, text, place, f"expected {category}_<n>; got {entry.id!r}")
            if entry.id in seen:
                raise _malformed(path, text, place, f"{entry.id!r} is there twice")
            seen[entry.id] = category
    if not seen:
        raise ValueError(f"{path}: holds no LoRA")
    return info


def key_lines(text: str) -> dict[tuple, int]:
    """Line of the keys and list items of a JSON text that lie no deeper than the format."""
    lines: dict[tuple, int] = {}
    decoder = json.JSONDecoder()
    ends = [match.start() for match in re.finditer("\n", text)]

    def skip(at: int) -> int:
        while text[at] in SPACE:
            at += 1
        return at

    def walk(at: int, place: tuple) -> int:
        at = skip(at)
        lines.setdefault(place, bisect(ends, at) + 1)
        if text[at] not in "{[" or len(place) == DEEPEST:
            return decoder.raw_decode(text, at)[1]
        is_object, number, at = text[at] == "{", 0, skip(at + 1)
        while text[at] not in "}]":
            key: Any = number
            if is_object:
                key_at = at
                key, at = scanstring(text, at + 1)
                lines[(*place, key)] = bisect(ends, key_at) + 1
                at = skip(at) + 1  # the colon
            at = skip(walk(at, (*place, key)))
            at, number = skip(at + 1) if text[at] == "," else at, number + 1
        return at + 1

    walk(0, ())
    return lines


def _malformed(path: Path, text: str, place: tuple, message: str) -> ValueError:
    try:
        lines, known = key_lines(text), place
    except RecursionError:  # json.loads needs a little less
        return ValueError(f"{path}: nested too deeply")
    while known not in lines:  # a missing key: the line of what should hold it
        known = known[:-1]
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return ValueError(f"{path}, line {lines[known]}: {name.lstrip('.') or 'the whole'}: {message}")


def _expected(error: dict[str, Any]) -> str:
    if error["type"] == "missing":
        return "is missing"
    return f"{error['msg']}; got {short(error['input'])}"
