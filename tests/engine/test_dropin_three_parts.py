"""A pipeline with guidance in three parts, which has no ``encode_prompt`` either."""

import cmlora_fast as cf
import diffusers
import pytest
import torch

from ..support import adapters, helpers
from ..support.helpers import relative

RUN = 1e-4
NAMES = ["character_1", "style_1"]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def pix2pix():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        denoiser = helpers.unet("one_layer", in_channels=8)
    base = helpers.pipeline("sd", "one_layer")
    parts = {**base.components, "unet": denoiser, "image_encoder": None}
    pipe = diffusers.StableDiffusionInstructPix2PixPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return adapters.add_many(pipe, NAMES, adapters.EVERYTHING)


def edit(pipe, **given):
    image = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(4))
    return pipe(
        "a fox",
        image=image,
        image_guidance_scale=1.5,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        **{"num_inference_steps": 8, **given},
    ).images


def test_three_guidance_parts():
    pipe = pix2pix()
    want = edit(pipe)
    with cf.accelerate(pipe):
        assert relative(edit(pipe), want) < RUN
        assert {step.full_rows for step in cf.summary(pipe).steps} == {3}


@pytest.mark.parametrize("method", ["composite", cf.CMLoRA(cache_interval=2)], ids=helpers.label)
def test_methods_with_three_guidance_parts(method):
    pipe = pix2pix()
    plain = edit(pipe)
    with cf.accelerate(pipe, method):
        got = edit(pipe)
        steps = cf.summary(pipe).steps
        assert torch.equal(edit(pipe), got)
    assert [step.index for step in steps] == list(range(8))
    assert {step.full_rows + step.shallow_rows for step in steps} == {6}
    assert relative(got, plain) > 1e-3
    pipe.set_adapters(NAMES[:1])
    one = edit(pipe)
    with cf.accelerate(pipe, "composite"):
        assert relative(edit(pipe), one) < RUN  # of one adapter: that adapter
