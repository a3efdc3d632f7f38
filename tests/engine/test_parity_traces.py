"""Every recorded trace of the released code, and the released loop where none was recorded."""

from contextlib import contextmanager

import cmlora_fast as cf
import numpy as np
import pytest
import torch

from ..support import traces
from ..support.loops import random_inputs, run_pipeline
from ..support.released_loop import amplitude, released

LIMIT = 1e-3
REPEATED = 1e-4  # the slow loop against the recording: reduction order of another machine


def method_of(spec: dict):
    """What a user would pass to reproduce a released run."""
    interval = spec["interval"]
    fields = {key: spec[key] for key in ("uniform", "center", "pow") if key in spec}
    fields.update(cache_interval=interval or "nonuniform", reference_compat=True)
    if spec["method"] == "merge":
        return cf.Merge(**fields)
    if spec["method"] == "switch":
        return cf.Switch(switch_step=spec.get("switch_step", 5), **fields)
    if "g" in spec:
        fields["threshold"] = spec["g"]
    return cf.CMLoRA(variant=spec["kind"], **fields)


@contextmanager
def threads(count: int):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


def amplitudes(pipe) -> list[float]:
    return [step.amplitude for step in cf.summary(pipe).steps]


@pytest.mark.parametrize("name", ["no_lora", "merge2_i1"])
def test_stock_pipeline_reproduces_what_it_can(name):
    spec, recorded = traces.load(name)
    pipe = traces.pipeline(spec["combo"], spec.get("sched", "dpm"))
    got = run_pipeline(pipe, traces.inputs(spec))
    assert traces.worst(got, torch.from_numpy(recorded["latents"])) < 1e-5


def test_all_traces_are_here():
    assert len(traces.NAMES) == 15


@pytest.mark.parametrize("name", traces.NAMES)
def test_engine_reproduces_trace(name):
    spec, recorded = traces.load(name)
    pipe = traces.pipeline(spec["combo"], spec.get("sched", "dpm"))
    cf.enable(pipe, method=method_of(spec))
    with threads(2 if spec["hw"] > 100 else 1):  # 14 400 tokens: two minutes on one core
        got = run_pipeline(pipe, traces.inputs(spec))
    np.testing.assert_array_equal(pipe.scheduler.timesteps.numpy(), recorded["timesteps"])
    assert traces.worst(got, torch.from_numpy(recorded["latents"])) < LIMIT
    if len(recorded["amplitude"]):
        np.testing.assert_allclose(amplitudes(pipe), recorded["amplitude"], rtol=1e-3)


SLOW_LOOP = [  # the loop that the cases below trust, against one trace of each branch
    "composite_offline2_i2",  # two high-frequency adapters
    "composite_offline2_quad",  # denser near a step
    "composite_offline3bg_i2",  # a background that is never refreshed
    "composite_async3_i2",  # dominance on its own clock
    "composite_online3bg_small_i2",  # a measure that is nan
    "merge3_i3",  # one cache, all adapters
    "switch3_every2",  # the first adapter one step longer
]


@pytest.mark.parametrize("name", SLOW_LOOP)
def test_released_loop_reproduces_trace(name):
    spec, recorded = traces.load(name)
    pipe = traces.pipeline(spec["combo"], spec.get("sched", "dpm"))
    stop = 22 if spec["hw"] == 16 else 6  # past the first change of dominance; past a few refreshes
    got, measured = released(pipe, {**traces.inputs(spec), "stop": stop}, spec)
    assert traces.worst(got, torch.from_numpy(recorded["latents"][:stop])) < REPEATED
    if measured:
        np.testing.assert_allclose(measured, recorded["amplitude"][:stop], rtol=1e-3)


FOUR = ["character_1", "clothing_1", "style_1", "background_1"]
OTHERS = [  # kind, method, adapters, interval, steps, height x width, scheduler, guidance, more
    ("offline", "composite", FOUR[:1], 2, 7, (16, 16), "dpm", 3.0, {}),  # one adapter
    ("offline", "composite", FOUR, 2, 5, (24, 40), "ddim", 3.0, {}),  # four, not square
    ("offline", "composite", FOUR[2:], 2, 6, (16, 16), "dpm", 1.0, {}),  # no guidance: last only
    ("offline", "composite", FOUR[:3], 0, 9, (16, 16), "ddim", 3.0, {}),  # nonuniform: no reuse
    ("offline", "composite", ["style_1", "other"], 2, 5, (16, 16), "dpm", 3.0, {}),  # one dropped
    ("async", "composite", FOUR[1:], 3, 22, (16, 16), "ddim", 3.0, {}),  # one change
    ("async", "composite", FOUR[:2], 2, 5, (16, 16), "dpm", 1.0, {}),  # no change, no guidance
    ("online", "composite", FOUR, 5, 7, (16, 24), "ddim", 3.0, {}),  # late from step 1 on
    ("online", "composite", FOUR[1:3], 2, 5, (16, 16), "dpm", 3.0, {}),  # no background: early
    ("offline", "merge", FOUR, 2, 6, (24, 40), "ddim", 3.0, {}),  # a cache, four adapters
    ("offline", "merge", FOUR[:2], 0, 4, (16, 16), "dpm", 3.0, {}),  # interval 0: no cache
    ("offline", "switch", FOUR, 2, 9, (16, 16), "ddim", 3.0, {"switch_step": 3}),  # shared cache
    ("offline", "switch", FOUR[:2], 5, 7, (16, 16), "dpm", 1.0, {"switch_step": 1}),  # unguided
]


@pytest.mark.parametrize(
    ("kind", "method", "combo", "interval", "steps", "size", "sched", "guidance", "more"), OTHERS
)
def test_engine_equals_released_loop(
    kind, method, combo, interval, steps, size, sched, guidance, more
):
    spec = dict(kind=kind, method=method, combo=combo, interval=interval, **more)
    pipe = traces.pipeline(combo, sched)
    inputs = random_inputs(pipe, steps=steps, size=size, guidance_scale=guidance)
    want, measured = released(pipe, inputs, spec)
    pipe = traces.pipeline(combo, sched)
    cf.enable(pipe, method=method_of(spec))
    assert traces.worst(run_pipeline(pipe, inputs), want) < LIMIT
    if measured:
        np.testing.assert_allclose(amplitudes(pipe), measured, rtol=1e-3)


def test_amplitude_of_the_loop_is_that_of_the_trace():
    spec, recorded = traces.load("composite_online3bg_large_i2_g005")
    assert spec["hw"] == 120  # the one size recorded at which bins from 80 on exist
    got = [amplitude(torch.from_numpy(z)[None]) for z in recorded["latents"]]
    np.testing.assert_allclose(got, recorded["amplitude"], rtol=1e-4)
