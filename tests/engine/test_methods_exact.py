"""Methods without caching against sequential calls of plain diffusers + PEFT."""

import functools

import cmlora_fast as cf
import pytest

from ..support import adapters, helpers
from ..support.helpers import relative
from ..support.loops import composed, denoise, random_inputs, run_pipeline

RUN = 1e-4
C, S, B = "character_1", "style_1", "background_1"
SCALES = {C: 0.8, S: 1.2, B: 1.0}
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@functools.cache
def three(shape="dummy"):
    return adapters.add_many(
        helpers.pipeline("sd", shape), [*SCALES], adapters.EVERYTHING, [*SCALES.values()]
    )


def check(method, steps, names=(C, S, B), *, shape="dummy", limit=RUN, **given):
    """The engine along the schedule ``steps`` (key -> share), every row full."""
    pipe = three(shape)
    inputs = random_inputs(pipe, steps=len(steps), **given)
    steps = [{key: (share, True) for key, share in step.items()} for step in steps]
    want = denoise(pipe, composed(pipe, steps, SCALES), inputs)
    pipe.unet.enable_adapters()
    pipe.set_adapters(list(names), [SCALES[name] for name in names])
    with cf.accelerate(pipe, method):
        got = run_pipeline(pipe, inputs)
    assert relative(got, want) < limit
    return cf.summary(pipe)


def led(dominant: str, coeff: float, names=(C, S, B)) -> dict:
    """Shares c/(c+N-1) of the dominant adapter and 1/(c+N-1) of each other."""
    total = coeff + len(names) - 1
    return {name: (coeff if name == dominant else 1.0) / total for name in names}


@pytest.mark.parametrize("shape", ["dummy", "one_layer"])
def test_merge(shape):
    check(cf.Merge(), [{f"{C}+{S}+{B}": 1.0}] * 4, shape=shape)
    assert three(shape).get_active_adapters() == [C, S, B]


@pytest.mark.parametrize("shape", ["dummy", "one_layer", "sd15"])
def test_composite(shape):
    check(cf.Composite(), [{C: 1 / 3, S: 1 / 3, B: 1 / 3}] * 3, shape=shape)


def test_composite_of_one_is_merge():
    check(cf.Composite(), [{S: 1.0}] * 3, names=[S])


@pytest.mark.parametrize("guidance", [1.0, 0.0])
def test_composite_without_guidance_is_the_mean(guidance):
    """Not the last adapter's prediction, as in the released code (D13)."""
    check(cf.Composite(), [{C: 0.5, B: 0.5}] * 3, names=[C, B], guidance_scale=guidance)


SWITCHES = [
    (1, [C, S, B, C, S, B, C]),  # every step
    (2, [C, C, S, S, B, B, C]),
    (3, [C, C, C, S, S, S, B]),  # the first adapter no longer than the others
    (9, [C] * 7),  # longer than the run
]


@pytest.mark.parametrize(("every", "active"), SWITCHES)
def test_switch(every, active):
    ran = check(cf.Switch(switch_step=every), [{name: 1.0} for name in active])
    assert [step.dominant for step in ran.steps] == active


PARTITIONS = [
    # 60 % of ten steps: six early ones of C and S, then the background
    (dict(switch_step=2), [C, C, S, S, C, C, B, B, B, B]),
    (dict(switch_step=1, stage_fraction=0.5), [C, S, C, S, C, B, B, B, B, B]),
    # no low-frequency adapter: the other list serves both stages
    (dict(switch_step=2, low_frequency=[]), [C, C, S, S, B, B, C, C, S, S]),
]


@pytest.mark.parametrize(("fields", "active"), PARTITIONS)
def test_switch_by_frequency(fields, active):
    ran = check(cf.Switch(partition=True, **fields), [{name: 1.0} for name in active])
    assert [step.dominant for step in ran.steps] == active


def test_cmlora_offline_live_decay():
    """T=10: early steps 0..5 rotate C and S; then the tail S and B, the counter going on."""
    dominant = [C, S, C, S, C, S, S, B, S, B]
    coeff = [2.5, 2.0, 1.75, 1.625, 1.5625, 1.53125, 1.515625, 1.5078125, 1.50390625, 1.501953125]
    steps = [led(*pair) for pair in zip(dominant, coeff, strict=True)]
    ran = check(cf.CMLoRA(cache_interval=1), steps)
    assert [step.dominant for step in ran.steps] == dominant
    assert [step.early for step in ran.steps] == [True] * 6 + [False] * 4
    for step, shares in zip(ran.steps, steps, strict=True):
        assert step.weights == pytest.approx(shares)


def test_cmlora_two_adapters_fall_to_the_floor():
    """N=2: 1.5, then 1.0, where the floor holds it: equal shares."""
    steps = [led(C, 1.5, (C, B)), *[led(C, 1.0, (C, B))] * 2, *[led(B, 1.0, (C, B))] * 2]
    check(cf.CMLoRA(cache_interval=1), steps, names=[C, B])


COEFFICIENTS = [
    (dict(decay="frozen"), [2.5, 2.5, 2.5, 2.5]),
    (dict(decay="frozen", dominant_coeff=4.0), [4.0, 4.0, 4.0, 4.0]),
    (dict(dominant_coeff=1.8, coeff_floor=1.2), [1.8, 1.3, 1.2, 1.2]),
    (dict(dominant_coeff=1.0, coeff_floor=0.5), [1.0, 0.5, 0.5, 0.5]),  # below the others
]


@pytest.mark.parametrize(("fields", "coeff"), COEFFICIENTS)
def test_cmlora_coefficient(fields, coeff):
    """T=4: early are 0, 1, 2; the fourth turn is index 3 mod 2 of the tail (S, B)."""
    steps = [led(*pair) for pair in zip([C, S, C, B], coeff, strict=True)]
    check(cf.CMLoRA(cache_interval=1, **fields), steps)


POOLS = [
    (dict(late="low_only"), [C, S, C, B, B]),  # T=5: early 0, 1, 2
    (dict(late="tail"), [C, S, C, B, S]),
    (dict(late="low_only", low_frequency=[C]), [S, B, S, C, C]),  # order is S, B, C
    (dict(low_frequency=[]), [C, S, B, C, S]),  # no low: high serves both
    (dict(low_frequency=[C, S, B]), [C, S, C, B, S]),  # no high: early is then the other list...
    (dict(stage_fraction=0.0), [S, B, S, B, S]),
    (dict(stage_fraction=1.0), [C, S, C, S, C]),
]


@pytest.mark.parametrize(("fields", "dominant"), POOLS)
def test_cmlora_pools(fields, dominant):
    if fields.get("low_frequency") == [C, S, B]:
        dominant = [C, S, B, C, S]  # ... "the other is the pool of both stages": all of it
    steps = [led(name, 2.5) for name in dominant]
    ran = check(cf.CMLoRA(cache_interval=1, decay="frozen", **fields), steps)
    assert [step.dominant for step in ran.steps] == dominant


def test_cmlora_async():
    """T=20: dominance changes every second step and the decay with it."""
    dominant = [(C, S, B)[i // 2 % 3] for i in range(20)]
    coeff = [2.5 - sum(0.5**turn for turn in range(1, i // 2 + 1)) for i in range(20)]
    steps = [led(*pair) for pair in zip(dominant, coeff, strict=True)]
    ran = check(cf.CMLoRA(variant="async", cache_interval=1), steps)
    assert [step.dominant for step in ran.steps] == dominant
    assert all(step.early is None for step in ran.steps)


def test_single_adapter_cmlora_is_merge():
    check(cf.CMLoRA(cache_interval=1), [{B: 1.0}] * 3, names=[B])


@pytest.mark.parametrize("method", ["merge", "switch", "composite", cf.CMLoRA(cache_interval=1)])
def test_one_step(method):
    pipe = three()
    inputs = random_inputs(pipe, steps=1)
    with cf.accelerate(pipe, method):
        assert run_pipeline(pipe, inputs).isfinite().all()
    assert len(cf.summary(pipe).steps) == 1
