"""Where a call begins, at which step it is, and what a callback may change in its midst."""

import copy

import cmlora_fast as cf
import diffusers
import pytest
import torch

from ..support import adapters, recording
from ..support.helpers import call, relative
from ..support.sampling import NEW, Loop

RUN = 1e-4
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
METHODS = [None, cf.Switch(switch_step=2), cf.Composite(), cf.CMLoRA(variant="offline")]
MEASURED = cf.CMLoRA(variant="online")


@pytest.fixture
def pipe():
    return adapters.fresh(["character_1", "style_1"], adapters.EVERYTHING, text=True)


def told(pipe):
    return [(step.dominant, step.refreshed, step.full_rows) for step in cf.summary(pipe).steps]


@pytest.mark.parametrize("method", [*METHODS, MEASURED], ids=str)
def test_a_prompt_encoded_in_a_callback_begins_nothing(pipe, method):
    def at_three(encode):
        def callback(pipe, i, t, tensors):
            if i == 3:
                positive, negative = encode()
                tensors["prompt_embeds"] = torch.cat([negative, positive])
            assert pipe.num_timesteps == 6
            return tensors

        return callback

    given = dict(num_inference_steps=6, callback_on_step_end_tensor_inputs=["prompt_embeds"])
    cf.enable(pipe, method)
    ready = pipe.encode_prompt(*NEW)
    want = call(pipe, callback_on_step_end=at_three(lambda: ready), **given)
    steps = told(pipe)
    got = call(pipe, callback_on_step_end=at_three(lambda: pipe.encode_prompt(*NEW)), **given)
    assert relative(got, want) < RUN
    assert told(pipe) == steps
    assert len(steps) == 6


def test_the_number_of_steps_stays_readable(pipe):
    cf.enable(pipe)
    call(pipe, num_inference_steps=5)
    pipe.encode_prompt(*NEW)
    assert pipe.num_timesteps == 5
    pipe.scheduler.set_timesteps(7)
    cf.disable(pipe)
    assert pipe.num_timesteps == 5


def test_a_call_after_one_that_failed_is_a_new_one(pipe):
    """Its prompt is encoded while the last run is still in progress, as far as anybody knows."""

    def fail(pipe, i, t, tensors):
        raise OSError("disk full")

    cf.enable(pipe, cf.Switch(switch_step=2))
    want = call(pipe, num_inference_steps=4)
    with pytest.raises(OSError, match="disk full"):
        call(pipe, num_inference_steps=8, callback_on_step_end=fail)
    assert relative(call(pipe, num_inference_steps=4), want) < RUN
    pipe.set_adapters(["style_1"])
    with pytest.raises(OSError, match="disk full"):
        call(pipe, num_inference_steps=8, callback_on_step_end=fail)
    pipe.set_adapters(["character_1", "style_1"], [0.5, 1.0])
    got = call(pipe, num_inference_steps=4)
    assert len(cf.summary(pipe).steps) == 4
    assert relative(got, call(pipe, num_inference_steps=4)) == 0


CACHED = [cf.Merge(cache_interval=3), cf.CMLoRA(variant="offline"), cf.Composite(cache_interval=2)]


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("method", [*METHODS, *CACHED, MEASURED], ids=str)
def test_parts_of_guidance_keep_their_own_features(pipe, method, images):
    cf.enable(pipe, method)
    loop = Loop(pipe, images)
    want = loop.run(apart=False)
    dominant = [step.dominant for step in cf.summary(pipe).steps]
    assert relative(loop.run(apart=True), want) < RUN
    assert [step.dominant for step in cf.summary(pipe).steps][::2] == dominant


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("method", [*METHODS[:3], *CACHED], ids=str)
def test_without_an_answer_the_plan_follows_the_time_steps(pipe, method, apart):
    cf.enable(pipe, method)
    loop = Loop(pipe)
    loop.run(apart=apart)
    want = told(pipe)
    loop.run(apart=apart, answers=False)
    assert told(pipe) == want


def test_lossless_is_exact_without_an_answer(pipe):
    want = Loop(pipe).run(apart=False, answers=False)
    cf.enable(pipe)
    assert relative(Loop(pipe).run(apart=False, answers=False), want) < RUN


def test_what_needs_an_answer_says_so(pipe):
    cf.enable(pipe, MEASURED)
    with pytest.warns(UserWarning, match=r"scheduler\.step is not called"):
        Loop(pipe).run(apart=False, answers=False)


@pytest.mark.parametrize("scheduler", ["HeunDiscrete", "KDPM2Discrete", "EulerDiscrete"])
@pytest.mark.parametrize("method", [None, *METHODS[1:3], *CACHED, MEASURED], ids=str)
def test_a_record_changes_no_image(pipe, method, scheduler):
    """Of second-order schedulers neither, whose evaluations share a step."""
    made = getattr(diffusers, f"{scheduler}Scheduler")
    pipe.scheduler = made.from_config(pipe.scheduler.config)
    images = []
    for record in (False, True):
        cf.enable(pipe, method, record=record)
        images.append(call(pipe, num_inference_steps=4))
    assert relative(*images) < 1e-5
    assert cf.summary(pipe).features


def change(kind):
    def callback(pipe, i, t, tensors):
        if kind == "switch" and i == 2:
            pipe.set_adapters(["style_1"], [1.0])
        if kind == "weights" and i == 2:
            pipe.set_adapters(["character_1", "style_1"], [0.2, 1.3])
        if kind == "fade":
            pipe.set_adapters(["character_1", "style_1"], [1 - i / 6, i / 6])
        if kind == "off" and i == 2:
            pipe.disable_lora()
        if kind == "on again":
            pipe.disable_lora() if i % 2 else pipe.enable_lora()
        if kind == "scale" and i == 2:
            for module in pipe.unet.modules():
                if hasattr(module, "scale_layer"):
                    module.scale_layer(0.5)
        return tensors

    return callback


CHANGES = ["switch", "weights", "fade", "off", "on again", "scale"]


@pytest.mark.parametrize("weights", ["auto", "fold", "delta"])
@pytest.mark.parametrize("kind", CHANGES)
def test_adapters_changed_in_a_callback_count_from_the_next_step(pipe, kind, weights):
    plain = copy.deepcopy(pipe)
    want = call(plain, num_inference_steps=6, callback_on_step_end=change(kind))
    cf.enable(pipe, weights=weights)
    got = call(pipe, num_inference_steps=6, callback_on_step_end=change(kind))
    assert relative(got, want) < RUN
    assert len(cf.summary(pipe).steps) == 6


@pytest.mark.parametrize("graphs", ["auto", pytest.param("compile", marks=pytest.mark.slow)])
def test_recorded_steps_follow_a_change(pipe, graphs, monkeypatch):
    """As on a GPU."""
    plain = copy.deepcopy(pipe)
    want = call(plain, num_inference_steps=6, callback_on_step_end=change("switch"))
    if graphs == "auto":
        recording.pretend(monkeypatch)
    cf.enable(pipe, graphs=graphs, backend="torch")
    got = call(pipe, num_inference_steps=6, callback_on_step_end=change("switch"))
    assert relative(got, want) < RUN


def mean_of(pipe, weights_at):
    """Composite as its definition says: the mean over the adapters that are active by then."""
    loop, scheduler = Loop(pipe), pipe.scheduler
    scheduler.set_timesteps(6)
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    for i, t in enumerate(scheduler.timesteps):
        made = []
        for name, weight in weights_at(i).items():
            pipe.set_adapters([name], [weight])
            u, c = loop.predict(x, t, apart=False)
            made.append(u + 4 * (c - u))
        x = scheduler.step(sum(made) / len(made), t, x).prev_sample
    return x


def test_composite_follows_a_change(pipe):
    def weights_at(i):
        return {"character_1": 1.0, "style_1": 1.0} if i < 3 else {"style_1": 0.7}

    loop = Loop(pipe)
    want = mean_of(copy.deepcopy(pipe), weights_at)
    pipe.set_adapters(["character_1", "style_1"], [1.0, 1.0])
    cf.enable(pipe, "composite")
    scheduler = pipe.scheduler
    scheduler.set_timesteps(6)
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    for i, t in enumerate(scheduler.timesteps):
        if i == 3:
            pipe.set_adapters(["style_1"], [0.7])
        u, c = loop.predict(x, t, apart=False)
        x = scheduler.step(u + 4 * (c - u), t, x).prev_sample
    assert relative(x, want) < RUN


@pytest.mark.parametrize("method", [*METHODS, *CACHED, MEASURED], ids=str)
def test_a_change_to_what_is_changes_nothing(pipe, method):
    """Every method goes on where it was, caches aside, which are filled anew."""

    def same(pipe, i, t, tensors):
        if i == 2:
            pipe.set_adapters(["character_1", "style_1"], [1.0, 0.9999999])
        return tensors

    cf.enable(pipe, method)
    call(pipe, num_inference_steps=6)
    want = [step.dominant for step in cf.summary(pipe).steps]
    call(pipe, num_inference_steps=6, callback_on_step_end=same)
    assert [step.dominant for step in cf.summary(pipe).steps] == want


def test_fused_in_a_callback_is_refused(pipe):
    def fuse(pipe, i, t, tensors):
        if i == 1:
            pipe.fuse_lora()
        return tensors

    cf.enable(pipe)
    with pytest.raises(ValueError, match="unfuse_lora"):
        call(pipe, num_inference_steps=4, callback_on_step_end=fuse)
