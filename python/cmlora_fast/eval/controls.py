"""Fewer steps at the same cost: what a cache has to beat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..methods import Method
from .macs import macs_per_sample
from .samples import Candidate, fewer_steps, without_cache

__all__ = ["shallow_share", "with_controls"]

FEWER = ", fewer steps"


def with_controls(
    candidates: Sequence[Candidate],
    adapters: Sequence[str],
    steps: int,
    shallow_of: Callable[[Any], float | None],
) -> list[Candidate]:
    """Behind every candidate whose cache saves a step: its method without, at the same cost.

    Args:
        candidates: In order; methods that are made per combination have no control.
        adapters: Names of one combination.
        steps: Of the others.
        shallow_of: Method -> what a UNet call from its cache costs of a whole one; None: nobody
            knows, and it gets no control.
    """
    found = []
    for candidate in candidates:
        found.append(candidate)
        method = candidate.method
        if not isinstance(method, Method) or without_cache(method) == method:
            continue
        shallow = shallow_of(method)
        fewer = steps if shallow is None else fewer_steps(method, adapters, steps, shallow)
        if fewer < steps:
            label = f"{candidate.label}{FEWER} ({fewer})"
            found.append(Candidate(label, without_cache(method), candidate.loras, fewer))
    return found


def shallow_share(unet: Any, height: int, width: int, method: Any) -> float | None:
    """What a shallow call of this UNet costs of a whole one, by multiply-accumulates.

    None for UNets that take more than text, which are not counted; a forecast has no such call.
    """
    if method.cache != "features":
        return 1.0
    try:
        macs = macs_per_sample(dict(unet.config), height, width, method)
    except ValueError:
        return None
    return macs["shallow"] / macs["full"]
