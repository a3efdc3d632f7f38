"""A pipeline with one adapter of each frequency and a background, and its runs."""

import functools

import cmlora_fast as cf

from . import adapters, helpers
from .loops import run_pipeline

C, S, B = "character_1", "style_1", "background_1"
SCALES = {C: 0.8, S: 1.2, B: 1.0}


@functools.cache
def three(kind="sd", shape="dummy"):
    return adapters.add_many(
        helpers.pipeline(kind, shape), [*SCALES], adapters.EVERYTHING, [*SCALES.values()]
    )


def ran(pipe, inputs, method, **options):
    """Latents of every step, and the summary without times."""
    with cf.accelerate(pipe, method, **options):
        latents = run_pipeline(pipe, inputs)
        summary = cf.summary(pipe)
    return latents, summary
