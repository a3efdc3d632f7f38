"""Paint jobs with one pipeline, keeping what is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image

import cmlora_fast as cf

from .jobs import Job
from .store import ImageStore, Kept

__all__ = ["Painted", "activate", "call", "paint", "paint_all", "rows_of"]

Watch = Callable[[Job], None]


class Painted(Kept):
    """What ``paint_all`` tells of an image."""

    seconds: float
    full_rows: int
    shallow_rows: int


def paint_all(
    pipe: Any, jobs: Iterable[Job], store: ImageStore, watch: Watch, **options: Any
) -> int:
    """Paint what the store does not hold yet; returns how many images that were.

    Args:
        pipe: With every adapter of the jobs loaded.
        jobs: In this order.
        store: Gets each image as soon as it is finished.
        watch: Called after each job, painted or not.
        options: ``backend``, ``weights``, ``max_rows`` of ``cf.enable``.
    """
    painted = 0
    for job in jobs:
        if not store.has(job):
            if not painted:
                _warm_up(pipe, job, options)
            started = time.perf_counter()
            image, summary = call(pipe, job, **options)
            seconds = time.perf_counter() - started
            store.add(job, image, {**rows_of(summary), "seconds": seconds})
            painted += 1
        watch(job)
    return painted


def call(
    pipe: Any,
    job: Job,
    *,
    steps: int | None = None,
    callback: Callable[..., Any] | None = None,
    **options: Any,
) -> tuple[Image.Image, cf.Summary]:
    """One image and what ran; ``callback`` as in ``paint``, ``options`` go to ``cf.enable``."""
    activate(pipe, [a.name for a in job.adapters], [a.weight for a in job.adapters])
    with cf.accelerate(pipe, job.method if job.adapters else None, **options):
        (image,) = paint(pipe, job, steps=steps, callback=callback)
        return image, cf.summary(pipe)


def rows_of(summary: cf.Summary) -> dict[str, int]:
    """How many samples of the UNet ran whole, and how many the shallow part only."""
    return {
        "full_rows": sum(step.full_rows for step in summary.steps),
        "shallow_rows": sum(step.shallow_rows for step in summary.steps),
    }


def paint(
    pipe: Any,
    job: Job,
    seeds: Sequence[int] | None = None,
    *,
    steps: int | None = None,
    callback: Callable[..., Any] | None = None,
) -> list[Image.Image]:
    """Images by the pipeline as it is: whatever adapters and method are on.

    Args:
        seeds: An image each, all in one call; None: the job's.
        callback: The pipeline's ``callback_on_step_end``.
    """
    seeds = [job.seed] if seeds is None else seeds
    g = job.generation
    given: dict[str, Any] = {
        "height": g.height,
        "width": g.width,
        "guidance_rescale": g.guidance_rescale or None,
        "clip_skip": g.clip_skip,
        "eta": g.eta or None,
        "cross_attention_kwargs": None if g.lora_scale == 1 else {"scale": g.lora_scale},
    }
    return pipe(
        job.prompt,
        negative_prompt=g.negative_prompt,
        num_inference_steps=steps or g.steps,
        guidance_scale=g.guidance_scale,
        num_images_per_prompt=len(seeds),
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        callback_on_step_end=callback,
        **{name: value for name, value in given.items() if value is not None},
    ).images


def activate(pipe: Any, names: Sequence[str], weights: Sequence[float]) -> None:
    """Exactly these adapters; for none, LoRA layers are off altogether and cost no time."""
    if names:
        pipe.enable_lora()
        pipe.set_adapters(list(names), list(weights))
    elif getattr(pipe, "peft_config", None) or hasattr(pipe.unet, "peft_config"):
        pipe.disable_lora()


def _warm_up(pipe: Any, job: Job, options: dict[str, Any]) -> None:
    """The first call pays for what torch sets up; nobody's seconds should."""
    call(pipe, replace(job, method=None), steps=1, **options)
