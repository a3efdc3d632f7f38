"""What would make a run fail or come out worse than asked for, said before it starts."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import Any

from torch import nn

from .methods import Method
from .refresh import reuses
from .stepplan import Measure
from .unet.topology import find_cut

__all__ = ["check_band", "check_cut", "check_names", "warn_of_caching"]

FEW_STEPS = 8  # below this, features differ too much from step to step to be reused unseen


def check_cut(method: Method, unet: nn.Module) -> None:
    """Raise ``ValueError`` for a cache position outside the UNet.

    The default position is checked only where it is used: small UNets may not have it.
    """
    position = (method.cache_layer_id, method.cache_block_id)
    default = (Method.cache_layer_id, Method.cache_block_id)
    if reuses(method) or position != default:
        try:
            find_cut(unet, *position)
        except ValueError as error:
            raise ValueError(f"{type(method).__name__}: {error}") from None


def check_names(method: Method, loaded: Collection[str]) -> None:
    """Raise ``ValueError`` for a name in ``low_frequency`` that is not a loaded adapter."""
    for name in getattr(method, "low_frequency", None) or ():
        if name not in loaded:
            known = ", ".join(map(repr, sorted(loaded))) or "none"
            raise ValueError(
                f"{type(method).__name__}.low_frequency: expected names of loaded adapters "
                f"({known}); got {name!r}"
            )


def check_band(measure: Measure | None, size: tuple[int, int]) -> None:
    """Raise ``ValueError`` for a frequency band that latents of this size do not have."""
    if measure is None or measure.nan_is_late:
        return
    height, width = size
    largest = ((height // 2) ** 2 + (width // 2) ** 2) ** 0.5
    first = measure.cutoff if measure.cutoff > 1 else max(1, int(measure.cutoff * largest))
    if first > int(largest):
        raise ValueError(
            f"CMLoRA.cutoff: expected a bin up to {int(largest)} for {height}x{width} latents; "
            f"got {measure.cutoff!r}, which leaves the band empty"
        )


def warn_of_caching(scheduler: Any, steps: int) -> None:
    """Warn where reused features are known to hurt. ``steps`` 0: not known."""
    name = type(scheduler).__name__
    algorithm = getattr(getattr(scheduler, "config", None), "algorithm_type", None) or ""
    if "Ancestral" in name or algorithm.startswith("sde"):
        warnings.warn(
            f"{name} adds fresh noise at every step, which cached features do not follow; expect "
            "lower quality, or set cache_interval=1",
            stacklevel=2,
        )
    if 0 < steps < FEW_STEPS:
        warnings.warn(
            f"{steps} steps with feature caching: below {FEW_STEPS} steps the features change "
            "much from one to the next; use more steps or cache_interval=1",
            stacklevel=2,
        )
