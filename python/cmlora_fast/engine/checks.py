"""What would make a run fail or come out worse than asked for, said before it starts."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from typing import Any

from torch import nn

from ..methods import CLoRA, Method
from ..schedule import Measure, Plan, follows_steps, reuses
from ..unet.inputs import UNetInputs
from ..unet.topology import find_cut

__all__ = [
    "check_band",
    "check_cut",
    "check_entries",
    "check_names",
    "check_rows",
    "check_scheduled",
    "warn_of_caching",
    "warn_of_lone_call",
    "warn_of_no_answer",
]

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


def check_names(method: Method | CLoRA, loaded: Collection[str]) -> None:
    """Raise ``ValueError`` for a name in ``low_frequency`` or ``masks`` that is not loaded."""
    for field in ("low_frequency", "masks"):
        for name in getattr(method, field, None) or ():
            if name not in loaded:
                known = ", ".join(map(repr, sorted(loaded))) or "none"
                raise ValueError(
                    f"{type(method).__name__}.{field}: expected names of loaded adapters "
                    f"({known}); got {name!r}"
                )


def check_scheduled(names: Collection[str], loaded: Collection[str]) -> None:
    """Raise ``ValueError`` for a name in ``weight_schedule`` that the UNet has not loaded."""
    for name in names:
        if name not in loaded:
            known = ", ".join(map(repr, sorted(loaded))) or "none"
            raise ValueError(
                f"weight_schedule: expected names of adapters loaded in the UNet ({known}); "
                f"got {name!r}"
            )


def check_entries(entries: Sequence[Any], inputs: UNetInputs, parts: int) -> None:
    """Raise ``ValueError`` unless ``adapter_names`` has an entry for every image of a UNet call.

    ``inputs``: with latents alone as the sample. ``parts``: guidance parts as the pipeline tells, 0
    for a call outside one, which may have any number.
    """
    count, batch = len(entries), inputs.batch
    # Guidance may have other parts than the pipeline tells; the latents of each are the same.
    known = parts in (0, batch // count) or (inputs.period() or batch) == count
    if batch % count == 0 and known:
        return
    images = batch // parts if parts and batch % parts == 0 else batch
    raise ValueError(
        f"adapter_names: expected an entry for each of the call's {images} images; got {count}"
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
    """Warn where reused features are known to hurt."""
    name = type(scheduler).__name__
    algorithm = getattr(getattr(scheduler, "config", None), "algorithm_type", None) or ""
    if "Ancestral" in name or algorithm.startswith("sde"):
        warnings.warn(
            f"{name} adds fresh noise at every step, which cached features do not follow; expect "
            "lower quality, or set cache_interval=1",
            stacklevel=2,
        )
    if steps < FEW_STEPS:
        warnings.warn(
            f"{steps} steps with feature caching: below {FEW_STEPS} steps the features change "
            "much from one to the next; use more steps or cache_interval=1",
            stacklevel=2,
        )


def check_rows(method: Method, plans: Sequence[Plan], keeper: str | None) -> None:
    """Raise ``ValueError`` where a step's rows would share features that ``keeper`` keeps."""
    rows = max(len(step.groups) for plan in plans for step in plan.steps)
    if keeper is not None and rows > 1:
        raise ValueError(
            f"{type(method).__name__}: expected a UNet whose calls do not depend on one another; "
            f"{keeper} keeps features from call to call, which the {rows} predictions of a step "
            "would share: turn it off"
        )


def warn_of_no_answer(method: Method, measure: Measure | None) -> None:
    """Warn where latents should decide and nobody hands them over."""
    if measure is not None:
        warnings.warn(
            f"{type(method).__name__}: scheduler.step is not called, whose latents decide on the "
            "stage; it stays early",
            stacklevel=2,
        )


def warn_of_lone_call(method: Method, adapters: Collection[str]) -> None:
    """Warn where a UNet call that belongs to no schedule runs as the only step of one."""
    if follows_steps(method, adapters):
        warnings.warn(
            f"{type(method).__name__}: a UNet call beyond the scheduler's timesteps, or without "
            "scheduler.set_timesteps before it, runs as the first step of the method",
            stacklevel=2,
        )
