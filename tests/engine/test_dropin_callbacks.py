"""Callbacks, interrupts, schedulers and pipelines that change while enabled."""

import cmlora_fast as cf
import pytest
import torch

from ..support import adapters, helpers
from ..support.helpers import call, relative

RUN = 1e-4
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def pipe():
    return adapters.fresh(["character_1", "style_1"], adapters.EVERYTHING)


def compare(pipe, make_callback, method=None, **given):
    given = {"num_inference_steps": 6, **given}
    want = call(pipe, callback_on_step_end=make_callback(), **given)
    with cf.accelerate(pipe, method):
        got = call(pipe, callback_on_step_end=make_callback(), **given)
    return relative(got, want)


def test_callback_sees_every_step(pipe):
    seen = []

    def see(pipe, i, t, tensors):
        seen.append((i, int(t), tensors["latents"].shape))
        return {}

    call(pipe, num_inference_steps=4, callback_on_step_end=see)
    plain, seen = seen, []
    with cf.accelerate(pipe, "composite"):
        call(pipe, num_inference_steps=4, callback_on_step_end=see)
    assert seen == plain


def test_callback_replaces_prompt_embeds(pipe):
    """Keys and values of the text are computed once per image: not when the text changes."""

    def make():
        def replace(pipe, i, t, tensors):
            return {"prompt_embeds": tensors["prompt_embeds"].flip(1)} if i == 2 else {}

        return replace

    tensors = ["latents", "prompt_embeds"]
    assert compare(pipe, make, callback_on_step_end_tensor_inputs=tensors) < RUN


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_callback_writes_into_prompt_embeds(pipe, mode):
    """The same tensor object; with another version, where tensors have one."""

    def make():
        def write(pipe, i, t, tensors):
            if i == 2:
                tensors["prompt_embeds"].mul_(-1.0)
            return {}

        return write

    tensors = ["latents", "prompt_embeds"]
    with mode():
        assert compare(pipe, make, callback_on_step_end_tensor_inputs=tensors) < RUN


def stop_guidance():
    """diffusers' documented dynamic guidance: off after 40 % of the steps, half the batch."""

    def stop(pipe, i, t, tensors):
        if i == int(pipe.num_timesteps * 0.4):
            tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]
            pipe._guidance_scale = 0.0
        return tensors

    return stop


def test_callback_turns_guidance_off(pipe):
    assert compare(pipe, stop_guidance, callback_on_step_end_tensor_inputs=["prompt_embeds"]) < RUN


@pytest.mark.parametrize("method", ["composite", cf.CMLoRA(cache_interval=2), cf.Switch()])
def test_methods_survive_a_shrinking_batch(pipe, method):
    given = dict(callback_on_step_end_tensor_inputs=["prompt_embeds"], num_inference_steps=8)
    with cf.accelerate(pipe, method):
        got = call(pipe, callback_on_step_end=stop_guidance(), **given)
        again = call(pipe, callback_on_step_end=stop_guidance(), **given)
        rows = [step.full_rows + step.shallow_rows for step in cf.summary(pipe).steps]
    per_image = 1 if isinstance(method, cf.Switch) else 2
    assert got.isfinite().all()
    assert torch.equal(got, again)
    assert rows == [2 * per_image] * 4 + [per_image] * 4


def test_features_of_a_shrinking_batch(pipe):
    """What is left of the batch are its last rows; the others are marked."""
    given = dict(callback_on_step_end_tensor_inputs=["prompt_embeds"], num_inference_steps=8)
    with cf.accelerate(pipe, "composite", record=True):
        call(pipe, callback_on_step_end=stop_guidance(), **given)
        features = cf.summary(pipe).features["character_1"]
        call(pipe, num_inference_steps=2)  # and the next call runs
    assert features.shape[:2] == (8, 2)
    assert features[:4].isfinite().all() and features[4:, 1].isfinite().all()
    assert features[4:, 0].isnan().all()


def test_callback_replaces_latents(pipe):
    def make():
        return lambda pipe, i, t, tensors: {"latents": tensors["latents"] * 0.9}

    assert compare(pipe, make) < RUN


@pytest.mark.parametrize("method", [None, "cmlora"])
def test_interrupt(pipe, method):
    """The latents stop where they were; the next call starts afresh."""

    def interrupt(pipe, i, t, tensors):
        pipe._interrupt = i == 2
        return {}

    with cf.accelerate(pipe, method):
        whole = call(pipe, num_inference_steps=8)
        stopped = call(pipe, num_inference_steps=8, callback_on_step_end=interrupt)
        assert len(cf.summary(pipe).steps) == 3
        assert torch.equal(call(pipe, num_inference_steps=8), whole)
        assert len(cf.summary(pipe).steps) == 8
    assert not torch.equal(stopped, whole)


@pytest.mark.parametrize("name", ["euler", "pndm", "heun"])
def test_scheduler_assigned_after_enable(pipe, name):
    cf.enable(pipe)
    call(pipe, num_inference_steps=2)
    pipe.scheduler = helpers.SCHEDULERS[name]()
    got = call(pipe, num_inference_steps=4)
    assert cf.summary(pipe).steps[0].timestep == pytest.approx(float(pipe.scheduler.timesteps[0]))
    cf.disable(pipe)
    assert relative(got, call(pipe, num_inference_steps=4)) < RUN


A, B = "character_1", "style_1"
COUNTING = [
    ("ddim", [A, B, A, B]),
    ("pndm", [A, B, A, B, A]),  # five calls of the UNet, one timestep comes twice
    ("heun", [A, A, B, B, A, A, B]),  # two calls per step, one in the last
]


@pytest.mark.parametrize(("name", "active"), COUNTING)
def test_second_order_schedulers_advance_per_step(pipe, name, active):
    """A method's step is a step of the scheduler; a record is a call of ``scheduler.step``."""
    pipe.scheduler = helpers.SCHEDULERS[name]()
    with cf.accelerate(pipe, cf.Switch(switch_step=1)):
        first = call(pipe, num_inference_steps=4)
        assert torch.equal(call(pipe, num_inference_steps=4), first)
        ran = cf.summary(pipe).steps
    assert [step.dominant for step in ran] == active
    assert [step.timestep for step in ran] == pipe.scheduler.timesteps.tolist()


@pytest.mark.parametrize("kind", helpers.KINDS)
@pytest.mark.parametrize("method", ["switch", "composite", "cmlora"])
def test_every_method_runs_on_every_pipeline(kind, method):
    pipe = helpers.pipeline(kind, "sdxl" if kind == "sdxl" else "dummy")
    adapters.add_many(pipe, ["character_1", "background_1"], adapters.EVERYTHING)
    plain = call(pipe, num_inference_steps=8)
    with cf.accelerate(pipe, method):
        got = call(pipe, num_inference_steps=8)
        steps = cf.summary(pipe).steps
    assert got.isfinite().all() and not torch.equal(got, plain)
    assert len(steps) == (6 if kind in ("img2img", "inpaint") else 8)  # strength 0.8 of eight
    rows = 2 if method == "switch" else 4
    assert all(step.full_rows + step.shallow_rows == rows for step in steps)
