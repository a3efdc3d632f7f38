"""Options of diffusers that a UNet or a pipeline may have on: still the same images."""

import cmlora_fast as cf
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor

from ..support import adapters, helpers
from ..support.helpers import call, relative

CALL, RUN = 1e-5, 1e-4
NAMES = ["character_1", "style_1"]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def loaded(shape="one_layer"):
    return adapters.fresh(NAMES, adapters.EVERYTHING, shape=shape)


FEATURES = [
    lambda pipe: pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.4, b2=1.6),  # scales inside up blocks
    lambda pipe: pipe.enable_attention_slicing(1),
    lambda pipe: pipe.unet.set_attn_processor(AttnProcessor()),  # not the fused attention
    lambda pipe: pipe.unet.to(memory_format=torch.channels_last),
    lambda pipe: pipe.unet.train(),
]


@pytest.mark.parametrize("feature", FEATURES)
def test_feature(feature):
    pipe = loaded()
    feature(pipe)
    want = call(pipe, num_inference_steps=3)
    with cf.accelerate(pipe):
        assert relative(call(pipe, num_inference_steps=3), want) < RUN
    assert torch.equal(call(pipe, num_inference_steps=3), want)


@torch.no_grad()
def one_call(pipe, **given):
    """Plain and ours on the same arguments, made twice: diffusers empties some lists."""

    def inputs():
        fresh = {key: list(v) if isinstance(v, list) else v for key, v in given.items()}
        return {**helpers.unet_inputs(pipe), **fresh}

    want = pipe.unet(**inputs())[0]
    plain = helpers.unet_inputs(pipe)
    with cf.accelerate(pipe):
        got = pipe.unet(**inputs())[0]
    return relative(got, want), relative(pipe.unet(**plain)[0], want)


def test_encoder_attention_mask():
    mask = torch.ones(2, 77, dtype=torch.bool)
    mask[0, 10:] = mask[1, 40:] = False
    same, effect = one_call(loaded(), encoder_attention_mask=mask)
    assert same < CALL < effect


def test_scale():
    same, effect = one_call(loaded(), cross_attention_kwargs={"scale": 0.25})
    assert same < CALL < effect


def test_controlnet_residuals():
    """One per skip, and one for the middle block."""
    pipe = loaded("sd15")
    draw = torch.Generator().manual_seed(1)
    control = helpers.controlnet(helpers.unet("sd15"))
    plain = helpers.unet_inputs(pipe)
    with torch.no_grad():
        down, mid = control(
            plain["sample"],
            plain["timestep"],
            encoder_hidden_states=plain["encoder_hidden_states"],
            controlnet_cond=torch.rand(2, 3, 128, 128, generator=draw),
            return_dict=False,
        )
    same, effect = one_call(
        pipe, down_block_additional_residuals=tuple(down), mid_block_additional_residual=mid
    )
    assert same < CALL < effect


def test_t2i_adapter_residuals():
    pipe = loaded("sd15")
    draw = torch.Generator().manual_seed(1)
    sizes = [(32, 16), (64, 8), (64, 4), (64, 2)]  # channels and extent within each down block
    residuals = [torch.randn(2, c, n, n, generator=draw) for c, n in sizes]
    same, effect = one_call(pipe, down_intrablock_additional_residuals=residuals)
    assert same < CALL < effect


def test_guidance_embedding():
    """LCM's UNets take the guidance scale as a part of the time embedding."""
    pipe = helpers.pipeline("sd", "one_layer")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe.unet = helpers.unet("one_layer", time_cond_proj_dim=16)
    adapters.add_many(pipe, NAMES, adapters.EVERYTHING)
    cond = torch.randn(2, 16, generator=torch.Generator().manual_seed(2))
    same, effect = one_call(pipe, timestep_cond=cond)
    assert same < CALL < effect
    want = call(pipe, num_inference_steps=3)
    with cf.accelerate(pipe, "composite"):
        call(pipe, num_inference_steps=3)
        assert cf.summary(pipe).steps[0].full_rows == 2  # such a UNet runs without guidance halves
    with cf.accelerate(pipe):
        assert relative(call(pipe, num_inference_steps=3), want) < RUN
