"""Strengths over a run against sequential calls of diffusers + PEFT with those weights."""

import cmlora_fast as cf
import pytest
import torch

from ..support import helpers, loops, recording
from ..support.helpers import relative
from ..support.loops import random_inputs, run_pipeline
from ..support.three import SCALES, B, C, S, three

RUN = 1e-4
T = 8
SCHEDULE = {C: "0@0,1@0.5", S: lambda fraction: 1 - fraction, B: "2@0.5"}
FACTORS = {
    C: [min(1.0, i / 4) for i in range(T)],
    S: [1 - i / T for i in range(T)],
    B: [2.0] * T,
}
STEPPED = {C: "0@3,1@4", S: "1@0"}  # constant until 3, and from 4 on
STEPS = {C: [0.0] * 4 + [1.0] * 4, S: [1.0] * T, B: [1.0] * T}
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def looped(pipe, inputs, shares, factors, fulls=None):
    """Latents of the plain loop; ``fulls`` [T]: keys whose deep part runs."""
    step, caches = iter(range(10**6)), {}
    weights = {}

    def one(key, whole, x, t, text, **more):
        names = key.split("+")
        with loops.only(pipe.unet, *((n, weights[n]) for n in names)):
            cached = caches.setdefault(key, loops.CachedUNet(pipe.unet))
            return cached(x, t, encoder_hidden_states=text, reuse=not whole, **more)

    steps = [
        {key: (share, fulls is None or key in fulls[i]) for key, share in shares.items()}
        for i in range(T)
    ]
    inner = loops.loops.composed(steps, one)

    def predict(i, *args, **more):
        next(step)
        weights.update({n: SCALES[n] * factors[n][i] for n in SCALES})
        return inner(i, *args, **more)

    want = loops.denoise(pipe, predict, inputs)
    pipe.unet.enable_adapters()
    pipe.set_adapters([*SCALES], [*SCALES.values()])
    return want


CASES = [
    (None, {f"{C}+{S}+{B}": 1.0}, None),
    (cf.Composite(), {C: 1 / 3, S: 1 / 3, B: 1 / 3}, None),
    (cf.Composite(cache_interval=2), {C: 1 / 3, S: 1 / 3, B: 1 / 3}, [(C, S, B), ()] * 4),
]


@pytest.mark.parametrize("schedule, factors", [(SCHEDULE, FACTORS), (STEPPED, STEPS)])
@pytest.mark.parametrize("method, shares, fulls", CASES)
def test_as_the_plain_loop(method, shares, fulls, schedule, factors, monkeypatch):
    pipe = three()
    inputs = random_inputs(pipe, steps=T)
    want = looped(pipe, inputs, shares, factors, fulls)
    for options in ({}, {"weights": "delta"}, {"weights": "fold"}):
        with cf.accelerate(pipe, method, weight_schedule=schedule, **options):
            got = run_pipeline(pipe, inputs)
            assert torch.equal(run_pipeline(pipe, inputs), got)
        assert relative(got, want) < RUN
    recording.pretend(monkeypatch)
    with cf.accelerate(pipe, method, weight_schedule=schedule, backend="torch"):
        for _ in range(2):
            assert relative(run_pipeline(pipe, inputs), want) < RUN


METHODS = [
    cf.Switch(switch_step=2),
    cf.CMLoRA(variant="online"),
    cf.Merge(cache="forecast"),
    cf.Composite(cache="relay"),
]


@pytest.mark.parametrize("method", METHODS, ids=helpers.label)
def test_a_constant_factor_is_a_weight(method):
    pipe = three()
    inputs = random_inputs(pipe, steps=12)
    with cf.accelerate(pipe, method, weight_schedule={C: "0.5@0", S: "1@0", B: "2@1"}):
        got = run_pipeline(pipe, inputs)
    try:
        pipe.set_adapters([C, S, B], [0.5 * SCALES[C], SCALES[S], 2 * SCALES[B]])
        with cf.accelerate(pipe, method):
            want = run_pipeline(pipe, inputs)
    finally:
        pipe.set_adapters([*SCALES], [*SCALES.values()])
    assert relative(got, want) < RUN


BAD = [{"nobody": "0@0"}, {C: "1@2"}, {C: "x@0"}, {C: "1@0.5,0@0"}, "0@0"]


@pytest.mark.parametrize("schedule", BAD, ids=str)
def test_bad_schedules_change_nothing(schedule):
    pipe = three()
    with pytest.raises(ValueError, match=r"weight_schedule.*expected.*got"):
        cf.enable(pipe, weight_schedule=schedule)
    assert "forward" not in vars(pipe.unet)
