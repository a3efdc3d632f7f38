"""A ControlNet answers for the UNet: where that rests, it rests too, and the image is the same."""

import copy

import cmlora_fast as cf
import pytest
import torch
from diffusers import MultiControlNetModel

from ..support import adapters, helpers
from ..support.helpers import call
from ..support.snapshot import assert_equal, snapshot

NAMES = ["character_1", "style_1"]
STEPS = 14
FORECAST = cf.Merge(cache="forecast")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def pipe():
    return adapters.fresh(NAMES, kind="controlnet")


def counted(pipe) -> list:
    ran = []
    pipe.controlnet.controlnet_mid_block.register_forward_hook(lambda *_: ran.append(1))
    return ran


def always(pipe) -> None:
    """Somebody else's forward is never left out."""
    forward = pipe.controlnet.forward
    pipe.controlnet.forward = lambda *args, **kwargs: forward(*args, **kwargs)


def both(pipe, **given):
    """The same image with a ControlNet that rests and with one that does not, and their runs."""
    found = []
    for other in (False, True):
        if other:
            cf.disable(pipe)
            always(pipe)
        cf.enable(pipe, FORECAST)
        ran = counted(pipe)
        image = call(pipe, num_inference_steps=STEPS, **given)
        found.append((image, len(ran)))
    return found


@pytest.mark.parametrize("guess_mode", [False, True])
@pytest.mark.parametrize("scale", [4.0, 1.0])
def test_the_image_is_the_same_at_less_work(pipe, guess_mode, scale):
    (got, few), (want, all_) = both(pipe, guess_mode=guess_mode, guidance_scale=scale)
    assert torch.equal(got, want)
    real = [step for step in cf.summary(pipe).steps if step.full_rows]
    assert (few, all_) == (len(real), STEPS) and few < STEPS


def test_several_controlnets(pipe):
    second = copy.deepcopy(pipe.controlnet)
    pipe.controlnet = MultiControlNetModel([pipe.controlnet, second])
    given = {"image": [torch.rand(1, 3, 128, 128)] * 2}
    ran = []
    for net in pipe.controlnet.nets:
        net.controlnet_mid_block.register_forward_hook(lambda *_: ran.append(1))
    cf.enable(pipe, FORECAST)
    call(pipe, num_inference_steps=STEPS, **given)
    assert len(ran) == 2 * sum(step.full_rows > 0 for step in cf.summary(pipe).steps)


@pytest.mark.parametrize("scheduler", ["heun", "dpm", "euler"])
def test_schedulers(scheduler):
    pipe = helpers.pipeline("controlnet", scheduler=scheduler)
    adapters.add(pipe, "character_1")
    (got, few), (want, all_) = both(pipe)
    assert torch.equal(got, want) and few < all_


def test_adapters_changed_in_mid_run_ask_it_again(pipe):
    def change(pipe, i, t, tensors):
        if i == 7:
            pipe.set_adapters(NAMES, [0.3, 0.2])
        return tensors

    weights = [1.0, 1.0]
    pipe.set_adapters(NAMES, weights)
    cf.enable(pipe, FORECAST)
    got = call(pipe, num_inference_steps=STEPS, callback_on_step_end=change)
    cf.disable(pipe)
    always(pipe)
    pipe.set_adapters(NAMES, weights)
    cf.enable(pipe, FORECAST)
    want = call(pipe, num_inference_steps=STEPS, callback_on_step_end=change)
    assert torch.equal(got, want)


def test_guidance_turned_off_in_mid_run_asks_it_again(pipe):
    def off(pipe, i, t, tensors):
        if i == 7:
            pipe._guidance_scale = 0.0
            tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[1]
        return tensors

    given = {
        "callback_on_step_end": off,
        "callback_on_step_end_tensor_inputs": ["prompt_embeds"],
        "image": torch.rand(1, 3, 128, 128),
        "guess_mode": True,
    }
    (got, few), (want, all_) = both(pipe, **given)
    assert torch.equal(got, want) and few < all_


@pytest.mark.parametrize("method", [cf.Merge(), cf.Composite(cache="relay"), None])
def test_other_methods_ask_it_at_every_step(pipe, method):
    ran = counted(pipe)
    cf.enable(pipe, method)
    call(pipe, num_inference_steps=STEPS)
    assert len(ran) == STEPS


def test_a_pipeline_that_shares_it_asks_it_always(pipe):
    """Also while the other's call has ended in an exception, and its run is not over."""

    class Stop(Exception):
        pass

    def stop(pipe, i, t, tensors):
        if i == 6:
            raise Stop
        return tensors

    other = adapters.fresh(NAMES, kind="controlnet")
    want = call(other, num_inference_steps=STEPS)
    other.controlnet = pipe.controlnet
    cf.enable(pipe, FORECAST)
    with pytest.raises(Stop):
        call(pipe, num_inference_steps=STEPS, callback_on_step_end=stop)
    ran = counted(pipe)
    assert torch.equal(call(other, num_inference_steps=STEPS), want)
    assert len(ran) == STEPS


def test_disable_leaves_it_as_it_was(pipe):
    before = vars(pipe.controlnet).copy()
    whole = snapshot(pipe)
    cf.enable(pipe, FORECAST)
    assert vars(pipe.controlnet) != before
    cf.disable(pipe)
    assert vars(pipe.controlnet) == before
    assert_equal(snapshot(pipe), whole)
