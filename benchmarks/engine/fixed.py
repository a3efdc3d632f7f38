"""What an image costs beside its steps: two numbers of steps give a slope, and a rest."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import cmlora_fast as cf

from ..models import call_inputs, load_adapters, sdxl_pipeline
from ..spread import quartiles
from .counts import counted

__all__ = ["METHODS", "run"]

METHODS = {  # steps that are alike: half of them cost half
    "lossless": None,
    "switch": cf.Switch(switch_step=2),
    "composite": cf.Composite(),
    "cmlora": cf.CMLoRA(cache_interval=1),
}
CHANNELS = (64, 64, 64)
TEXT_WIDTH = 64  # keys and values of the text, once per image, are work of the steps
RANK = 4
LATENTS = 8
WARM_UPS = 2  # the first image makes the weights

Advance = Callable[..., None]


def run(
    *,
    adapters: int,
    steps: tuple[int, int],
    rounds: int,
    advance: Advance = lambda amount=1, description=None: None,
) -> dict[str, Any]:
    """Milliseconds of images of both step counts, all contenders of a round one after the other.

    The UNet has SDXL's layers at a toy width, so that nothing but their number takes time.
    ``off`` has the adapters loaded and disabled: what it costs beside its steps is diffusers' own.
    """
    plain, off, ours = (sdxl_pipeline(CHANNELS, text_width=TEXT_WIDTH) for _ in range(3))
    for pipe in (off, ours):
        load_adapters(pipe, adapters, RANK)
    off.unet.disable_adapters()
    modules = sum(1 for _ in ours.unet.modules())
    results = []
    for name, method in METHODS.items():
        advance(0, description=name)
        with cf.accelerate(ours, method):
            found = _measured((plain, off, ours), steps, rounds)
        results.append({"contender": name, **found})
        advance()
    return {"modules": modules, "results": results}


def _measured(pipes: tuple[Any, Any, Any], steps: tuple[int, int], rounds: int) -> dict[str, Any]:
    few, many = steps
    for pipe in pipes:
        for _ in range(WARM_UPS):
            _milliseconds(pipe, few)
    found: tuple[list, list, list] = ([], [], [])
    for _ in range(rounds):
        for pipe, kept in zip(pipes, found, strict=True):
            short, long = (_milliseconds(pipe, count) for count in steps)
            slope = (long - short) / (many - few)
            kept.append((slope, short - few * slope))
    plain, off, ours = found
    with counted() as counts:
        _milliseconds(pipes[-1], few)
    step = median(slope for slope, _ in plain)
    over = [mine - theirs for (_, mine), (_, theirs) in zip(ours, off, strict=True)]
    return {
        "eager_step_ms": quartiles([slope for slope, _ in plain]),
        "step_ms": quartiles([slope for slope, _ in ours]),
        "rest_ms": quartiles([rest for _, rest in ours]),
        "diffusers_rest_ms": quartiles([rest for _, rest in off]),
        "over_ms": quartiles(over),
        "eager_steps": quartiles([value / step for value in over]),
        "counts": {name: counts[name] for name in ("walks", "reductions", "reads")},
    }


def _milliseconds(pipe: Any, steps: int) -> float:
    given = call_inputs(pipe, LATENTS, steps)
    started = time.perf_counter()
    pipe(**given)
    return 1e3 * (time.perf_counter() - started)
