"""``cf.enable(pipe)`` alone: the images of diffusers + PEFT on every pipeline and scheduler."""

import functools

import cmlora_fast as cf
import pytest
import torch

from ..support import adapters, helpers
from ..support.helpers import call, relative

CALL, RUN = 1e-5, 1e-4  # one UNet call on equal input; ten guided steps

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@functools.cache
def mixed(kind="sd", shape=None):
    """A pipeline with three unlike adapters, shared: ``disable`` leaves it as it was."""
    return adapters.add_mixture(helpers.pipeline(kind, shape))


def compare(pipe, options=(), **given):
    """Relative difference between the enabled and the plain pipeline, equal arguments."""
    with torch.no_grad():
        want = call(pipe, **given)
        with cf.accelerate(pipe, **dict(options)):
            got = call(pipe, **given)
    return relative(torch.as_tensor(got), torch.as_tensor(want))


SHAPES = [
    ("sd", "sd15"),  # SD 1.5's block types, two layers
    ("sd", "dummy"),  # no attention in the outermost block, which has one layer
    ("sd", "one_layer"),  # the embedded model's
    ("sdxl", "sdxl"),  # linear projections, embeddings that differ per row
]


@pytest.mark.parametrize("weights", ["auto", "fold", "delta"])
@pytest.mark.parametrize(("kind", "shape"), SHAPES)
@torch.no_grad()
def test_one_unet_call(kind, shape, weights):
    pipe = mixed(kind, shape)
    inputs = helpers.unet_inputs(pipe, batch=3)
    want = pipe.unet(**inputs)[0]
    pipe.disable_lora()
    assert relative(pipe.unet(**inputs)[0], want) > 1e-2  # the adapters are seen
    pipe.enable_lora()
    with cf.accelerate(pipe, weights=weights):
        assert relative(pipe.unet(**inputs)[0], want) < CALL


@pytest.mark.parametrize("scheduler", helpers.SCHEDULERS)
@pytest.mark.parametrize("kind", helpers.KINDS)
def test_ten_guided_steps(kind, scheduler):
    pipe = mixed(kind, "sdxl" if kind == "sdxl" else "dummy")
    pipe.scheduler = helpers.SCHEDULERS[scheduler]()
    if kind == "img2img" and scheduler == "heun":
        assert compare(pipe, strength=1.0) < RUN  # diffusers truncates Heun's list in mid-step
    else:
        assert compare(pipe) < RUN


@pytest.mark.parametrize("kind", ["sd", "controlnet", "inpaint"])
def test_sd15_blocks(kind):
    assert compare(mixed(kind, "sd15"), num_inference_steps=4) < RUN


ARGUMENTS = [
    dict(guidance_scale=1.0),  # no guidance: one part
    dict(guidance_scale=0.0),
    dict(guidance_rescale=0.7),
    dict(num_images_per_prompt=2),
    dict(prompt=["a fox", "a bear in a hat"], negative_prompt=["blurry", ""]),
    dict(cross_attention_kwargs={"scale": 0.3}),
    dict(cross_attention_kwargs={"scale": 0.0}),
    dict(height=96, width=160),  # not square
    dict(height=88, width=104),  # latents of 11 x 13: no power of two divides them
    dict(eta=0.7),
    dict(num_inference_steps=1),
    dict(output_type="pt"),
    dict(output_type="np"),
    dict(timesteps=None, num_inference_steps=3, guidance_scale=9.5),
]


@pytest.mark.parametrize("given", ARGUMENTS, ids=helpers.label)
def test_arguments(given):
    pipe = mixed("sd", "one_layer")
    pipe.scheduler = helpers.SCHEDULERS["ddim"]()
    assert compare(pipe, **{"num_inference_steps": 4, **given}) < RUN


def test_embeddings_and_latents_in():
    pipe = mixed("sd", "dummy")
    draw = torch.Generator().manual_seed(5)
    given = dict(
        prompt_embeds=torch.randn(2, 77, helpers.WIDTH, generator=draw),
        negative_prompt_embeds=torch.randn(2, 77, helpers.WIDTH, generator=draw),
        latents=torch.randn(2, 4, 16, 16, generator=draw),
    )
    assert compare(pipe, num_inference_steps=4, **given) < RUN


@pytest.mark.parametrize("scheduler", ["euler_a", "ddim"])  # noise in every step; with eta
def test_list_of_generators(scheduler):
    pipe = mixed("sd", "dummy")
    pipe.scheduler = helpers.SCHEDULERS[scheduler]()

    def run():
        generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        images = call(
            pipe, prompt=["a", "b"], negative_prompt=["", ""], generator=generators, eta=1
        )
        return images, [generator.get_state() for generator in generators]

    want, states = run()
    with cf.accelerate(pipe):
        got, after = run()
    assert relative(got, want) < RUN
    assert all(torch.equal(a, b) for a, b in zip(after, states, strict=True))


@pytest.mark.parametrize("eta", [0.0, 1.0])  # none drawn in the loop; one draw per step
def test_eta_draws_the_same_noise(eta):
    pipe = mixed("sd", "dummy")
    pipe.scheduler = helpers.SCHEDULERS["ddim"]()
    plain, ours = (torch.Generator().manual_seed(3) for _ in range(2))
    want = call(pipe, eta=eta, generator=plain)
    with cf.accelerate(pipe):
        got = call(pipe, eta=eta, generator=ours)
    assert torch.equal(plain.get_state(), ours.get_state())
    assert relative(got, want) < RUN


@pytest.mark.parametrize("max_rows", [1, 3, 7])  # one sample at a time; no divisor of 4; all
def test_max_rows(max_rows):
    pipe = mixed("sd", "dummy")
    assert compare(pipe, {"max_rows": max_rows}, num_images_per_prompt=2) < RUN


@pytest.mark.parametrize("weights", ["fold", "delta"])
@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_weight_modes(kind, weights):
    pipe = mixed(kind, "sdxl" if kind == "sdxl" else "one_layer")
    assert compare(pipe, {"weights": weights}, num_inference_steps=4) < RUN
    assert cf.summary(pipe).weights["mode"] == weights
    assert cf.summary(pipe).weights["reason"]


def test_unet_keyword_forms():
    """A tuple, an output object, positional and float timesteps, one per sample."""
    pipe = mixed("sd", "dummy")
    inputs = helpers.unet_inputs(pipe)
    sample, text = inputs["sample"], inputs["encoder_hidden_states"]
    times = [301, 301.0, torch.tensor(301), torch.tensor([301, 17])]
    with torch.no_grad():
        want = [pipe.unet(sample, time, text).sample for time in times]
        with cf.accelerate(pipe):
            got = [pipe.unet(sample, time, text).sample for time in times]
    assert all(relative(a, b) < CALL for a, b in zip(got, want, strict=True))
