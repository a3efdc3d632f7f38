"""Weights, devices and parts that change under an enabled pipeline: never a stale fold."""

import cmlora_fast as cf
import diffusers
import pytest
import torch

from ..support import adapters, helpers
from ..support.helpers import call, relative

RUN = 1e-4
NAMES = ["character_1", "style_1"]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def pipe():
    return adapters.fresh(NAMES, adapters.EVERYTHING)


def run(pipe, **given):
    return call(pipe, num_inference_steps=3, **given)


def check_after(pipe, change, **options):
    """Enabled before the change, run before and after it: as the plain pipeline after it."""
    cf.enable(pipe, **options)
    before = run(pipe)
    change(pipe)
    got = run(pipe)
    cf.disable(pipe)
    want = run(pipe)
    assert relative(got, want) < RUN
    assert relative(before, want) > 10 * RUN  # the change is seen
    assert "forward" not in vars(pipe.unet)


@torch.no_grad()
def scale_base_weight(pipe):
    for name, parameter in pipe.unet.named_parameters():
        if "base_layer.weight" in name:
            parameter.mul_(1.05)


@torch.no_grad()
def reload_base_weights(pipe):
    state = {name: tensor * 1.05 for name, tensor in pipe.unet.state_dict().items()}
    pipe.unet.load_state_dict(state)


def through_bfloat16(pipe):
    pipe.to(torch.bfloat16)
    pipe.to(torch.float32)


def same_name_again(pipe):
    pipe.delete_adapters(["style_1"])
    adapters.add(pipe, "style_1", adapters.EVERYTHING, seed=78)
    pipe.set_adapters(NAMES)


def another_unet(pipe):
    pipe.unet = adapters.add_many(
        helpers.pipeline("sd", "one_layer", seed=5), ["character_1"], adapters.EVERYTHING
    ).unet


CHANGES = [
    scale_base_weight,
    reload_base_weights,
    through_bfloat16,
    same_name_again,
    another_unet,
]


@pytest.mark.parametrize("weights", ["fold", "delta"])
@pytest.mark.parametrize("change", CHANGES)
def test_change_between_calls(pipe, change, weights):
    check_after(pipe, change, weights=weights)


def test_the_unet_that_was_replaced_is_restored(pipe):
    old = pipe.unet
    cf.enable(pipe)
    run(pipe)
    another_unet(pipe)
    run(pipe)
    cf.disable(pipe)
    for unet in (old, pipe.unet):
        assert all("forward" not in vars(module) for module in unet.modules())


def test_set_adapters_in_a_callback_holds_from_the_next_call(pipe):
    """Adapters are read at each ``pipe()`` call; PEFT's own state is what the callback set."""

    def change(pipe, i, t, tensors):
        if i == 1:
            pipe.set_adapters(["style_1"], [0.5])
        return {}

    plain = adapters.fresh(NAMES, adapters.EVERYTHING)
    plain.set_adapters(["style_1"], [0.5])
    want = run(plain)
    with cf.accelerate(pipe, "composite"):
        assert run(pipe, callback_on_step_end=change).isfinite().all()
        assert relative(run(pipe), want) < RUN
    assert pipe.get_active_adapters() == ["style_1"]
    assert torch.equal(run(pipe), want)


@pytest.mark.parametrize("method", [None, "composite", "cmlora"])
def test_adapters_that_come_after_enable(method):
    """PEFT puts layers of its own in the place of others, conv_in among them."""
    pipe = helpers.pipeline("sd", "dummy")
    cf.enable(pipe, method)
    run(pipe)
    adapters.add_many(pipe, NAMES[:1], adapters.EVERYTHING)
    got = run(pipe)
    cf.disable(pipe)
    assert method == "cmlora" or relative(got, run(pipe)) < RUN
    with cf.accelerate(pipe, method):
        assert torch.equal(run(pipe), got)


def test_fused_and_unloaded(pipe):
    """diffusers' own advice for speed; the weights then hold the adapters, and others may come."""
    cf.enable(pipe, "composite")
    run(pipe)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    got, want = run(pipe), run(cf.disable(pipe))
    assert torch.equal(got, want)
    cf.enable(pipe, "composite")
    adapters.add_many(pipe, ["object_1"], adapters.EVERYTHING)
    got, want = run(pipe), run(cf.disable(pipe))
    assert relative(got, want) < RUN


def image_to_image(pipe):
    other = diffusers.StableDiffusionImg2ImgPipeline(
        **pipe.components, requires_safety_checker=False
    )
    other.set_progress_bar_config(disable=True)
    return other


def test_two_pipelines_of_the_same_parts(pipe):
    """One at a time: the second is refused, and the first goes on."""
    other = image_to_image(pipe)
    want, want_other = run(pipe), run(other)
    cf.enable(pipe)
    with pytest.raises(RuntimeError, match="shares"):
        cf.enable(other)
    assert relative(run(pipe), want) < RUN
    assert relative(run(other), want_other) < RUN  # through hooks that lose nothing
    cf.disable(pipe)
    with cf.accelerate(other):
        assert relative(run(other), want_other) < RUN
    assert torch.equal(run(pipe), want) and torch.equal(run(other), want_other)
    assert all("forward" not in vars(module) for module in pipe.unet.modules())
    assert "step" not in vars(pipe.scheduler)


ENCODED = [
    ("merge", NAMES),
    ("composite", NAMES),
    (cf.CMLoRA(cache_interval=1), NAMES),
    ("switch", NAMES[:1]),  # the first alone (cmlora spec §4.1, D16)
]


@pytest.mark.parametrize(("method", "active"), ENCODED, ids=helpers.label)
def test_text_encoder_adapters_of_a_method(method, active):
    pipe = adapters.fresh(NAMES, adapters.EVERYTHING, text=True)
    pipe.set_adapters(active)
    positive, negative = pipe.encode_prompt(
        helpers.PROMPT, "cpu", 1, True, negative_prompt=helpers.NEGATIVE
    )
    pipe.set_adapters(NAMES)
    with cf.accelerate(pipe, method):
        want = run(pipe, prompt_embeds=positive, negative_prompt_embeds=negative)
        assert relative(run(pipe), want) < RUN
        assert torch.equal(run(pipe), run(pipe))  # nothing leaks from image to image
    assert pipe.get_active_adapters() == NAMES
