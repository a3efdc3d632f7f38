"""Scores out of what a judge has written, in time linear in its length."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

__all__ = ["BEST", "parse_scores"]

BEST = 10

_TOKEN = re.compile(
    r"[ \t\r\n]*(?:(?P<mark>[][{}:,])|(?P<text>"
    r'"[^"\\\x00-\x1f]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*)*")|(?P<bare>'
    r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null))",
    re.ASCII,
)


def parse_scores(text: str, axes: Sequence[str]) -> list[dict[str, float]] | None:
    """The scores of both images from the last JSON object that holds them; None if none does."""
    whole: dict[int, tuple[Any, int]] = {}
    for start in range(len(text) - 1, -1, -1):
        if text[start] in "{[" and (found := _container(text, start, whole)):
            whole[start] = found
            if scores := _scores(found[0], axes):
                return scores
    return None


def _container(text: str, start: int, whole: dict[int, tuple[Any, int]]) -> tuple[Any, int] | None:
    """The object or array that begins at ``start``, and its end; None if it is not JSON.

    ``whole`` has those that begin after it: none is read twice, however deep they nest.
    """
    is_object = text[start] == "{"
    closing, pairs, key = "}" if is_object else "]", {}, None
    token = _TOKEN.match(text, start + 1)
    if token and token["mark"] == closing:
        return pairs, token.end()
    while token:
        if is_object:
            key, colon = token["text"], _TOKEN.match(text, token.end())
            if not (key and colon and colon["mark"] == ":"):
                return None
            if not (token := _TOKEN.match(text, colon.end())):
                return None
        value, end = (token["text"] or token["bare"] or "").strip('"'), token.end()
        if token["mark"]:
            if end - 1 not in whole:
                return None
            value, end = whole[end - 1]
        pairs[key and json.loads(key)] = value
        after = _TOKEN.match(text, end)
        if after and after["mark"] == closing:
            return pairs, after.end()
        token = _TOKEN.match(text, after.end()) if after and after["mark"] == "," else None
    return None


def _scores(found: dict[Any, Any], axes: Sequence[str]) -> list[dict[str, float]] | None:
    try:
        scores = [{axis: float(found[f"image {n}"][axis]) for axis in axes} for n in (1, 2)]
    except (ValueError, LookupError, TypeError):
        return None
    good = all(0 <= value <= BEST for image in scores for value in image.values())
    return scores if good else None
