"""Forecasts in whole calls: images, guidance parts, callbacks, options, what the summary says."""

import cmlora_fast as cf
import pytest
import torch

from ..support import adapters, helpers, recording
from ..support.helpers import call, relative
from ..support.sampling import Loop
from ..support.snapshot import assert_equal, snapshot

RUN = 1e-4
STEPS = 14
NAMES = ["character_1", "style_1", "background_1"]
FORECAST = [cf.Merge(cache="forecast"), cf.CMLoRA(cache="forecast", variant="online")]
RELAY = [cf.Composite(cache="relay"), cf.CMLoRA(cache="relay", variant="online")]
METHODS = [*FORECAST, *RELAY]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
every_method = pytest.mark.parametrize("method", METHODS, ids=helpers.label)


@pytest.fixture
def pipe():
    return adapters.fresh(NAMES, adapters.EVERYTHING, text=True)


def image(pipe, method, **options):
    given = {"num_inference_steps": STEPS}
    enabled = {n: options.pop(n) for n in [*options] if n in ENABLE}
    cf.enable(pipe, method, **enabled)
    return call(pipe, **{**given, **options})


ENABLE = ("max_rows", "weights", "record", "graphs", "backend", "adapter_names")


@every_method
def test_each_of_several_images_is_the_one_painted_alone(pipe, method):
    seeds = [3, 4]
    alone = [image(pipe, method, generator=torch.Generator().manual_seed(s)) for s in seeds]
    generators = [torch.Generator().manual_seed(s) for s in seeds]
    both = image(pipe, method, num_images_per_prompt=2, generator=generators)
    assert relative(both, torch.cat(alone)) < RUN


@every_method
def test_runs_repeat_bit_for_bit_and_leave_nothing(pipe, method):
    before = snapshot(pipe)
    first = image(pipe, method)
    image(pipe, method, seed=5, num_inference_steps=16)
    assert torch.equal(image(pipe, method), first)
    cf.disable(pipe)
    pipe.__dict__.pop("_num_timesteps")
    names = before["pipe"] | {name for name in vars(pipe) if name.startswith("_")}
    assert_equal(snapshot(pipe) | {"pipe": names}, before | {"pipe": names})


@every_method
@pytest.mark.parametrize("options", [{"max_rows": 1}, {"weights": "delta"}, {"record": True}])
def test_options_change_nothing(pipe, method, options):
    assert relative(image(pipe, method, **options), image(pipe, method)) < RUN


@every_method
def test_guidance_parts_one_by_one(pipe, method):
    cf.enable(pipe, method)
    loop = Loop(pipe)
    want = loop.run(STEPS, apart=False)
    assert relative(loop.run(STEPS, apart=True), want) < RUN
    rows = sum(step.full_rows for step in cf.summary(pipe).steps)
    loop.run(STEPS, apart=False)
    assert sum(step.full_rows for step in cf.summary(pipe).steps) == rows


@every_method
@pytest.mark.parametrize("kind", helpers.KINDS)
def test_every_pipeline(kind, method):
    pipe = adapters.fresh(NAMES, kind=kind, shape="sdxl" if kind == "sdxl" else "dummy")
    given = {"num_inference_steps": 18}
    cf.enable(pipe, type(method)(cache_interval=1))
    want = call(pipe, **given)
    total = sum(step.full_rows for step in cf.summary(pipe).steps)
    cf.enable(pipe, method)
    got = call(pipe, **given)
    assert relative(got, want) < 0.2
    rows = sum(step.full_rows for step in cf.summary(pipe).steps)
    assert rows < 0.8 * total


@every_method
def test_guidance_that_a_callback_turns_off(pipe, method):
    """Another batch: what is known of the last one is of no use, and two steps run."""

    def off(pipe, i, t, tensors):
        if i == 8:
            pipe._guidance_scale = 0.0
            tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[1]
        return tensors

    given = {"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    got = image(pipe, method, num_inference_steps=20, callback_on_step_end=off, **given)
    assert got.isfinite().all()
    J = 1 if method.__class__ is cf.Merge else 3
    rows = [step.full_rows for step in cf.summary(pipe).steps]
    assert rows[9:11] == [J, J] and 0 < sum(rows[11:]) < J * len(rows[11:])


@every_method
def test_adapters_changed_in_mid_run(pipe, method):
    """Their lines are new: everyone runs twice."""

    def change(pipe, i, t, tensors):
        if i == 8:
            pipe.set_adapters(NAMES[:2], [0.7, 0.2])
        return tensors

    image(pipe, method, num_inference_steps=20, callback_on_step_end=change)
    steps = cf.summary(pipe).steps
    assert cf.summary(pipe).adapters == tuple(NAMES[:2])
    J = 1 if method.__class__ is cf.Merge else 2
    assert [step.full_rows for step in steps[9:11]] == [2 * J, 2 * J]
    assert min(step.full_rows for step in steps[11:]) < 2 * J


@every_method
def test_interrupt(pipe, method):
    def stop(pipe, i, t, tensors):
        pipe._interrupt = i == 6
        return tensors

    want = image(pipe, method)
    image(pipe, method, callback_on_step_end=stop)
    assert torch.equal(image(pipe, method), want)


@pytest.mark.parametrize("method", [FORECAST[1], *RELAY], ids=helpers.label)
def test_adapter_names(pipe, method):
    """Each image's turns are its own."""
    each = [NAMES[::-1], NAMES[:2], ["style_1"]]
    generators = [torch.Generator().manual_seed(s) for s in range(3)]
    given = {"num_images_per_prompt": 3, "generator": generators}
    together = image(pipe, method, adapter_names=each, **given)
    for n, entry in enumerate(each):
        alone = {"generator": torch.Generator().manual_seed(n), "adapter_names": [entry]}
        assert relative(together[n : n + 1], image(pipe, method, **alone)) < RUN


def test_masks(pipe):
    """Lines are blended per pixel: where a mask is whole, an adapter draws as if alone."""
    half = torch.zeros(16, 16)
    half[:, :8] = 1
    masks = {"character_1": half, "style_1": 1 - half, "background_1": half}
    plain = image(pipe, cf.Composite(masks=masks))
    got = image(pipe, cf.Composite(cache="relay", masks=masks))
    without = image(pipe, cf.Composite(cache="relay"))
    assert relative(got, plain) < 0.5 * relative(without, plain)


@every_method
def test_as_on_a_gpu(pipe, method, monkeypatch):
    """Decisions on the device, steps recorded and replayed; lines are read by nobody."""
    want = image(pipe, method)
    recording.pretend(monkeypatch)
    for _ in range(2):
        got = image(pipe, method, backend="torch")
        assert relative(got, want) < RUN
    graphs = cf.summary(pipe).graphs
    assert graphs["used"] and graphs["replayed"] > 0, graphs


@every_method
def test_where_the_unet_cannot_be_taken_apart(pipe, method):
    want = image(pipe, method)
    pipe.unet.down_blocks[0].register_forward_hook(lambda module, args, out: None)
    assert relative(image(pipe, method), want) < RUN
    told = cf.summary(pipe).cache
    assert told["used"] and told["reason"].startswith(method.cache)


def test_what_the_summary_tells(pipe):
    image(pipe, cf.Composite(cache="relay"))
    told = cf.summary(pipe)
    first, third = told.steps[0], told.steps[2]
    assert (first.refreshed, first.forecast, first.full_rows) == (tuple(NAMES), (), 6)
    assert (third.refreshed, third.forecast) == ((NAMES[0],), tuple(NAMES[1:]))
    assert (third.full_rows, third.shallow_rows) == (2, 0)
    assert sum(third.weights.values()) == pytest.approx(1)
    assert told.to_dict()["steps"][2]["forecast"] == NAMES[1:]
    assert "relay" in str(told)
    image(pipe, cf.Merge(cache="forecast"))
    steps = cf.summary(pipe).steps
    assert [step.index for step in steps if step.forecast] == [4, 6, 8, 9, 11]
    assert all(step.forecast == tuple(NAMES) for step in steps if not step.full_rows)
    assert len(steps) == STEPS


@pytest.mark.filterwarnings("default")
def test_few_steps_are_warned_of_and_all_run(pipe):
    with pytest.warns(UserWarning, match="11 steps with cache='forecast': below 12"):
        got = image(pipe, cf.Merge(cache="forecast"), num_inference_steps=11)
    assert torch.equal(got, image(pipe, cf.Merge(), num_inference_steps=11))


def test_without_adapters(pipe):
    pipe.set_adapters(NAMES, [0.0] * 3)
    for method in METHODS:
        got = image(pipe, method)
        names = {name for step in cf.summary(pipe).steps for name in step.forecast}
        assert got.isfinite().all() and not names


def test_a_call_of_the_unet_alone(pipe):
    given = torch.ones(1, 4, 16, 16), 1, torch.ones(1, 77, helpers.WIDTH)
    for method in METHODS:
        cf.enable(pipe, type(method)(cache_interval=1))
        want = pipe.unet(*given).sample
        cf.enable(pipe, method)
        for _ in range(3):
            assert relative(pipe.unet(*given).sample, want) < RUN
