"""What would make a run fail or come out worse than asked for, said before it starts."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from ..clora.prompts import RowPrompts
from ..methods import CLoRA, CMLoRA, Method, Switch
from ..schedule import Measure, reuses
from ..unet.inputs import UNetInputs
from ..unet.topology import find_cut

__all__ = [
    "check_band",
    "check_contrast",
    "check_cut",
    "check_names",
    "input_scale",
    "warn_of_caching",
    "warn_of_lone_call",
]

FEW_STEPS = 8  # below this, features differ too much from step to step to be reused unseen


def check_cut(method: Method | CLoRA, unet: nn.Module) -> None:
    """Raise ``ValueError`` for a cache position outside the UNet.

    The default position is checked only where it is used: small UNets may not have it.
    """
    if isinstance(method, CLoRA):
        return
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


def warn_of_lone_call(method: Method, adapters: Collection[str]) -> None:
    """Warn where a UNet call that belongs to no schedule runs as the only step of one."""
    if reuses(method) or (isinstance(method, Switch | CMLoRA) and len(adapters) > 1):
        warnings.warn(
            f"{type(method).__name__}: a UNet call beyond the scheduler's timesteps, or without "
            "scheduler.set_timesteps before it, runs as the first step of the method",
            stacklevel=2,
        )


def check_contrast(
    opaque: str | None, inputs: UNetInputs, parts: int, method: CLoRA, prompts: RowPrompts
) -> None:
    """Raise ``ValueError`` for a UNet call that CLoRA cannot run."""
    foreign = set(inputs.added or ()) - {"text_embeds", "time_ids"}
    if foreign:
        raise ValueError(f"CLoRA: expected no conditions beside the text; got {sorted(foreign)}")
    if method.latent_update and opaque is not None:
        raise ValueError(f"CLoRA: expected a UNet call that can be taken apart; {opaque}")
    if inputs.batch % parts:
        raise ValueError(
            f"CLoRA: expected {parts} guidance parts; the UNet was called with {inputs.batch} rows"
        )
    width, own = inputs.raw_text.shape[-1], prompts.positive.shape[-1]
    if width != own:
        raise ValueError(
            f"CLoRA.row_prompt_embeds: expected embeddings of the UNet's width {width}; got {own}"
        )


def input_scale(scheduler: Any, timestep: Any) -> float:
    """What ``scheduler.scale_model_input`` multiplies latents by at this step."""
    if not hasattr(scheduler, "scale_model_input"):
        return 1.0
    return float(scheduler.scale_model_input(torch.ones(1), timestep))
