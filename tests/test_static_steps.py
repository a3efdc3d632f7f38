"""What a GPU runs, on the CPU: decisions by table, weights in stacks, steps replayed.

A replay here is the recorded function called again on its own memory; what a CUDA graph adds is
tested in tests/test_gpu_pipelines.py.
"""

import dataclasses
import functools
import itertools

import cmlora_fast as cf
import pytest
import torch
from cmlora_fast import engine

from . import adapters, helpers
from .helpers import relative
from .loops import random_inputs, run_pipeline

C, S, B = "character_1", "style_1", "background_1"
SCALES = {C: 0.8, S: 1.2, B: 1.0}
ROUNDING = 1e-4  # along a trajectory
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@functools.cache
def three(kind="sd", shape="dummy"):
    return adapters.add_many(
        helpers.pipeline(kind, shape), [*SCALES], adapters.EVERYTHING, [*SCALES.values()]
    )


METHODS = [
    None,
    cf.Merge(cache_interval=2),
    cf.Switch(switch_step=2, cache_interval=3),
    cf.Composite(cache_interval=2),
    cf.CMLoRA(cache_interval=2),
    cf.CMLoRA(cache_interval=2, max_age=3),
    cf.CMLoRA(cache_interval=2, dominant_full="every_step"),
    cf.CMLoRA(variant="async", cache_interval=3),
]


def ran(pipe, inputs, method, **options):
    """Latents of every step, and the summary without times."""
    with cf.accelerate(pipe, method, **options):
        latents = run_pipeline(pipe, inputs)
        summary = cf.summary(pipe)
    return latents, summary


def facts(summary):
    """What was decided, and the amplitudes, which follow the rounding of the steps before."""
    steps, amplitudes = summary.to_dict()["steps"], []
    for step in steps:
        del step["milliseconds"]
        for record in (step, *step["per_image"]):
            amplitudes.append(record.pop("amplitude", None) or 0.0)
    return steps, amplitudes


def check_facts(got, want):
    (steps, amplitudes), (wanted, readings) = facts(got), facts(want)
    assert steps == wanted and amplitudes == pytest.approx(readings, rel=1e-3)


@pytest.mark.parametrize("weights", ["fold", "delta"])
@pytest.mark.parametrize("method", METHODS, ids=helpers.label)
def test_replays_are_the_eager_steps_and_decisions_the_hosts(method, weights, monkeypatch):
    pipe = three()
    inputs = random_inputs(pipe, steps=8, images=2)
    want, host = ran(pipe, inputs, method, weights=weights)
    monkeypatch.setattr(engine, "on_gpu", lambda device: True)
    eager, device = ran(pipe, inputs, method, weights=weights, graphs="off")
    with cf.accelerate(pipe, method, weights=weights):
        first = run_pipeline(pipe, inputs)
        once = cf.summary(pipe)
        again = run_pipeline(pipe, inputs)
        twice = cf.summary(pipe)
    assert relative(eager, want) < ROUNDING
    assert torch.equal(first, eager) and torch.equal(again, eager)
    for summary in (device, once, twice):
        check_facts(summary, host)
    assert device.graphs == {"used": False, "reason": 'graphs="off"'}
    assert once.graphs["used"] and twice.graphs["replayed"] == 8


@pytest.mark.parametrize(
    "options",
    [
        dict(cache_interval=2),
        dict(cache_interval=2, latch=False),
        dict(cache_interval=1, latch=False, amplitude="log"),
    ],
    ids=helpers.label,
)
def test_images_decide_on_the_device(options, monkeypatch):
    pipe = three()
    inputs = random_inputs(pipe, steps=8, images=2)
    method = cf.CMLoRA(variant="online", threshold=0.0, **options)
    _, seen = ran(pipe, inputs, method)
    readings = sorted(image["amplitude"] for step in seen.steps for image in step.per_image)
    middle = readings[len(readings) // 4 : -len(readings) // 4]
    gap, below = max((b - a, a) for a, b in itertools.pairwise(middle))
    method = dataclasses.replace(method, threshold=below + gap / 2)  # rounding changes no stage
    want, host = ran(pipe, inputs, method)
    assert {image["early"] for step in host.steps for image in step.per_image} == {True, False}
    monkeypatch.setattr(engine, "on_gpu", lambda device: True)
    eager, device = ran(pipe, inputs, method, graphs="off")
    replayed, again = ran(pipe, inputs, method)
    assert relative(eager, want) < ROUNDING and torch.equal(eager, replayed)
    check_facts(device, host)
    check_facts(again, host)
