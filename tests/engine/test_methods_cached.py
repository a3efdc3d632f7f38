"""Feature caching against a slow cache: a full UNet whose hidden state is overwritten."""

import functools

import cmlora_fast as cf
import pytest
import torch

from ..support import adapters, helpers
from ..support.helpers import relative
from ..support.loops import composed, denoise, random_inputs, run_pipeline

RUN = 1e-4
C, S, B = "character_1", "style_1", "background_1"
SCALES = {C: 0.8, S: 1.2, B: 1.0}
ALL = f"{C}+{S}+{B}"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@functools.cache
def three(kind="sd", shape="dummy"):
    return adapters.add_many(
        helpers.pipeline(kind, shape), [*SCALES], adapters.EVERYTHING, [*SCALES.values()]
    )


def check(method, steps, names=(C, S, B), *, shape="dummy", cut=(0, 1), options=(), **given):
    """``steps``: key -> (share, full). Returns the summary after comparing rows and latents."""
    pipe = three("sd", shape)
    inputs = random_inputs(pipe, steps=len(steps), **given)
    want = denoise(pipe, composed(pipe, steps, SCALES, cut), inputs)
    pipe.unet.enable_adapters()
    pipe.set_adapters(list(names), [SCALES[name] for name in names])
    with cf.accelerate(pipe, method, **dict(options)):
        got = run_pipeline(pipe, inputs)
    ran = cf.summary(pipe)
    assert relative(got, want) < RUN
    parts = 2 if inputs["guidance_scale"] > 1 else 1
    rows = parts * inputs["latents"].shape[0]
    for step, record in zip(steps, ran.steps, strict=True):
        assert record.full_rows == rows * sum(full for _, full in step.values())
        assert record.shallow_rows == rows * sum(not full for _, full in step.values())
        refreshed = [key for key, (_, full) in step.items() if full]
        if not any("+" in key for key in step):
            assert sorted(record.refreshed) == sorted(refreshed)
    return ran


def rounds(shares: list[dict], refreshed: list[set]) -> list[dict]:
    return [
        {name: (share, name in full) for name, share in step.items()}
        for step, full in zip(shares, refreshed, strict=True)
    ]


def led(dominant: str, coeff: float, names=(C, S, B)) -> dict:
    total = coeff + len(names) - 1
    return {name: (coeff if name == dominant else 1.0) / total for name in names}


# Eight steps, interval 2, early below ceil(4.8) = 5, felt at the next schedule step, 6.
LEADERS = [C, C, S, S, C, C, B, B]
COEFFS = [2.5, 2.5, 2.0, 2.0, 1.75, 1.75, 1.625, 1.625]
REFRESHED = [{C, S, B}, set(), {S}, set(), {C}, set(), {B}, set()]
OFFLINE = rounds([led(*pair) for pair in zip(LEADERS, COEFFS, strict=True)], REFRESHED)

CUTS = [
    ("sd15", (0, 1)),  # the default: the whole outermost down block is shallow
    ("sd15", (0, 0)),  # DeepCache's: one pair
    ("sd15", (0, 2)),  # with the downsampler
    ("sd15", (1, 1)),  # two blocks
    ("one_layer", (0, 1)),  # block id = number of layers: into the next block
    ("one_layer", (0, 0)),
    ("dummy", (0, 1)),
]


@pytest.mark.parametrize(("shape", "cut"), CUTS)
def test_cmlora_offline(shape, cut):
    layer, block = cut
    method = cf.CMLoRA(cache_interval=2, cache_layer_id=layer, cache_block_id=block)
    ran = check(method, OFFLINE, shape=shape, cut=cut)
    assert [step.dominant for step in ran.steps] == LEADERS


OPTIONS = [dict(weights="fold"), dict(weights="delta"), dict(max_rows=1), dict(max_rows=5)]


@pytest.mark.parametrize("options", OPTIONS, ids=helpers.label)
def test_cmlora_offline_whatever_the_options(options):
    check(cf.CMLoRA(cache_interval=2), OFFLINE, shape="one_layer", options=options)


VARIED = [
    dict(size=(16, 24)),
    dict(size=(11, 13)),  # nothing divides
    dict(images=3),
    dict(guidance_scale=1.0),  # one part
]


@pytest.mark.parametrize("given", VARIED, ids=helpers.label)
def test_cmlora_offline_other_inputs(given):
    check(cf.CMLoRA(cache_interval=2), OFFLINE, shape="one_layer", **given)


def test_cmlora_nonuniform():
    """T=16: interval 2 below 6, 3 below 14, then 2: 0 2 4 6 9 12 14; early below 10."""
    schedule = [0, 2, 4, 6, 9, 12, 14]
    # turns 0..4 rotate C and S; 12 and 14 are late: turns 5 and 6 of the tail (S, B)
    leader = dict(zip(schedule, [C, S, C, S, C, B, S], strict=True))
    steps, current, coeff = [], C, 2.5
    for i in range(16):
        if i in leader:
            current = leader[i]
            coeff -= 0.5 ** schedule.index(i) if i else 0
        full = {C, S, B} if i == 0 else {current} if i in leader else set()
        steps.append({name: (share, name in full) for name, share in led(current, coeff).items()})
    check(cf.CMLoRA(), steps)


def test_cmlora_dominant_full_every_step():
    full = [{C, S, B}, {C}, {C, S, B}, {S}, {C, S, B}, {C}, {C, S, B}, {B}]
    steps = rounds([led(*pair) for pair in zip(LEADERS, COEFFS, strict=True)], full)
    check(cf.CMLoRA(cache_interval=2, dominant_full="every_step"), steps)


def test_cmlora_max_age():
    """Older than three steps: refreshed in its fourth step without one, dominant or not."""
    # S is refreshed at 2, C and (four steps old) B at 4, then B at 6 as the dominant one and S
    # again as four steps old
    full = [{C, S, B}, set(), {S}, set(), {C, B}, set(), {B, S}, set()]
    steps = rounds([led(*pair) for pair in zip(LEADERS, COEFFS, strict=True)], full)
    check(cf.CMLoRA(cache_interval=2, max_age=3), steps)


def test_cmlora_async():
    """T=20, changes at even steps, schedule {0, 3, 6, ...}: the current dominant refreshes."""
    steps, coeff = [], 2.5
    for i in range(20):
        turn = i // 2
        coeff -= 0.5**turn if i % 2 == 0 and i else 0
        dominant = (C, S, B)[turn % 3]
        full = {C, S, B} if i == 0 else {dominant} if i % 2 == 0 or i % 3 == 0 else set()
        steps.append({name: (share, name in full) for name, share in led(dominant, coeff).items()})
    check(cf.CMLoRA(variant="async", cache_interval=3), steps)


@pytest.mark.parametrize("interval", [2, 3])
def test_composite(interval):
    steps = [dict.fromkeys(SCALES, (1 / 3, i % interval == 0)) for i in range(7)]
    check(cf.Composite(cache_interval=interval), steps, shape="one_layer")


def test_switch_has_a_cache_per_adapter():
    """Active at 0..2, 3..5, 6..8; refreshed on becoming active and at even steps."""
    active, full = [C, C, C, S, S, S, B, B, B], {0, 2, 3, 4, 6, 8}
    steps = [{name: (1.0, i in full)} for i, name in enumerate(active)]
    check(cf.Switch(switch_step=3, cache_interval=2), steps, shape="one_layer")


@pytest.mark.parametrize("shape", ["dummy", "one_layer"])
def test_merge(shape):
    check(cf.Merge(cache_interval=3), [{ALL: (1.0, i % 3 == 0)} for i in range(7)], shape=shape)


def test_merge_denser_near_a_step():
    """Quad-center schedule of the specification: T=50, n=10, center 15, pow 1.4."""
    schedule = {0, 5, 9, 13, 17, 21, 26, 31, 37, 43}
    method = cf.Merge(cache_interval=5, uniform=False, center=15, pow=1.4)
    check(method, [{ALL: (1.0, i in schedule)} for i in range(50)], size=(8, 8))


@pytest.mark.parametrize("method", [cf.Merge(cache_interval=3), cf.CMLoRA(cache_interval=3)])
def test_plain_feature_caching_without_an_adapter(method):
    pipe = three("sd", "one_layer")
    inputs = random_inputs(pipe, steps=7)
    steps = [{"": (1.0, i % 3 == 0)} for i in range(7)]
    want = denoise(pipe, composed(pipe, steps, {}), inputs)
    pipe.disable_lora()
    try:
        with cf.accelerate(pipe, method):
            assert relative(run_pipeline(pipe, inputs), want) < RUN
    finally:
        pipe.enable_lora()


SMALL = [(1, 2), (1, 5), (2, 2), (2, 5), (3, 9)]  # steps, interval: cut to what fits


@pytest.mark.parametrize(("steps", "interval"), SMALL)
def test_schedule_longer_than_the_run(steps, interval):
    schedule = [dict.fromkeys(SCALES, (1 / 3, i % interval == 0)) for i in range(steps)]
    check(cf.Composite(cache_interval=interval), schedule)


@pytest.mark.parametrize("kind", ["sdxl", "controlnet"])
def test_cache_on_other_pipelines(kind):
    """The slow cache in place of the UNet's forward, under the pipeline's own loop."""
    shape = "sdxl" if kind == "sdxl" else "one_layer"
    pipe = three(kind, shape)
    pipe.set_adapters([*SCALES], [*SCALES.values()])
    given = dict(num_inference_steps=5)
    schedule = [dict.fromkeys(SCALES, (1 / 3, i % 2 == 0)) for i in range(5)]
    predict, step = composed(pipe, schedule, SCALES), -1
    plain = pipe.unet.forward

    def slow(sample, timestep, encoder_hidden_states, **kwargs):
        """The pipeline's own call, adapter after adapter; the hook sees the plain forward."""
        nonlocal step
        step += 1
        pipe.unet.forward = plain
        kwargs.pop("return_dict", None)
        total = predict(step, sample, timestep, encoder_hidden_states, **kwargs)
        pipe.unet.forward = slow
        return (total,)

    pipe.unet.forward = slow
    try:
        with torch.no_grad():
            want = helpers.call(pipe, **given)
    finally:
        del pipe.unet.forward
    pipe.unet.enable_adapters()
    pipe.set_adapters([*SCALES], [*SCALES.values()])
    with cf.accelerate(pipe, cf.Composite(cache_interval=2)):
        assert relative(helpers.call(pipe, **given), want) < RUN
