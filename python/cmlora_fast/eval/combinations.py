"""Which LoRAs are composed with which: ComposLoRA's combinations."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import TypeVar

__all__ = ["generate_combinations", "sample"]

LEAD = "character"  # the category that every combination holds
Entry = TypeVar("Entry")


def generate_combinations(lora_info: Mapping[str, Sequence[Entry]], n: int) -> list[tuple]:
    """All sets of ``n`` LoRAs: a character and n - 1 others, no category twice.

    The other categories are chosen in the order of ``lora_info``, and for each choice the product
    of their LoRAs is taken, the last one varying fastest. With ``n`` = 1: every LoRA alone.
    (cmlora spec §6.5.)

    Args:
        lora_info: Category -> its LoRAs.
        n: 1 to the number of categories.

    Returns:
        The combinations; none if there is no character category and n > 1.

    Raises:
        ValueError: ``n`` is out of range.
    """
    if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= len(lora_info):
        raise ValueError(
            f"generate_combinations: n: expected an int from 1 to {len(lora_info)}, the number of "
            f"categories; got {n!r}"
        )
    if n == 1:
        return [(entry,) for entries in lora_info.values() for entry in entries]
    if LEAD not in lora_info:
        return []
    others = [category for category in lora_info if category != LEAD]
    return [
        combination
        for chosen in itertools.combinations(others, n - 1)
        for combination in itertools.product(*(lora_info[c] for c in (LEAD, *chosen)))
    ]


def sample(combinations: Sequence[Entry], which: str) -> list[Entry]:
    """A part of the combinations, the same at every call.

    Args:
        combinations: All of them.
        which: "all", in the given order; or "8" or "8:16", a slice of one fixed shuffled order, so
            that disjoint slices are independent samples.

    Raises:
        ValueError: Another form, or a slice that holds nothing.
    """
    if which == "all":
        return list(combinations)
    start, colon, stop = which.partition(":")
    try:
        part = slice(int(start or 0), int(stop) if stop else None) if colon else slice(int(start))
    except ValueError:
        part = None
    if part is None or any(edge is not None and edge < 0 for edge in (part.start, part.stop)):
        raise ValueError(
            f"combinations: expected all, a number such as 8 or a slice such as 8:16; got {which!r}"
        )
    shuffled = list(combinations)
    random.Random(0).shuffle(shuffled)
    if not shuffled[part]:
        raise ValueError(f"combinations: {which!r} holds none of the {len(shuffled)} there are")
    return shuffled[part]
