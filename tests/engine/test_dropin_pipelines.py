"""Pipelines off the beaten track: without ``encode_prompt``, with PAG, or no pipeline at all."""

import functools

import cmlora_fast as cf
import diffusers
import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from ..support import adapters, helpers, loops
from ..support.helpers import relative

RUN = 1e-4
A, B = NAMES = ["character_1", "style_1"]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def components(shape="dummy"):
    parts = helpers.pipeline("sd", shape).components
    return {k: v for k, v in parts.items() if k not in ("image_encoder", "feature_extractor")}


def adapted(pipe, pattern=adapters.ATTENTION):
    """Two adapters put into the UNet alone: not all of these pipelines load LoRA files."""
    pipe.set_progress_bar_config(disable=True)
    for seed, name in enumerate(NAMES):
        weights = adapters.state_dict(pipe, pattern, seed=seed)
        weights = {key.removeprefix("unet."): value for key, value in weights.items()}
        pipe.unet.load_lora_adapter(weights, adapter_name=name, prefix=None)
    pipe.unet.set_adapters(NAMES, [1.0, 1.0])
    return pipe


@functools.cache
def image_variation():
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=1,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        projection_dim=helpers.WIDTH,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = CLIPVisionModelWithProjection(config).eval()
    parts = components()
    pipe = diffusers.StableDiffusionImageVariationPipeline(
        **{k: v for k, v in parts.items() if k not in ("tokenizer", "text_encoder")},
        image_encoder=encoder,
        feature_extractor=CLIPImageProcessor(size=32, crop_size=32),
        requires_safety_checker=False,
    )
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return adapted(pipe), dict(image=diffusers.utils.numpy_to_pil(picture / 255)[0])


@functools.cache
def pag():
    pipe = diffusers.StableDiffusionPAGPipeline(
        **components("one_layer"),
        feature_extractor=None,
        requires_safety_checker=False,
        pag_applied_layers="mid",
    )
    return adapted(pipe, adapters.EVERYTHING), dict(prompt="a fox", pag_scale=3.0)


@functools.cache
def kandinsky():
    blocks = dict(
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        addition_embed_type="image",
        encoder_hid_dim=32,
        encoder_hid_dim_type="image_proj",
        resnet_time_scale_shift="scale_shift",
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = helpers.unet("dummy", out_channels=8, **blocks)
    levels = dict(  # four, so that latents have 16 x 16
        block_out_channels=(32,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    pipe = diffusers.KandinskyV22Pipeline(
        unet=unet, scheduler=helpers.SCHEDULERS["ddim"](), movq=diffusers.VQModel(**levels)
    )
    draw = torch.Generator().manual_seed(0)
    embeds = [torch.randn(1, 32, generator=draw) for _ in range(2)]
    given = dict(image_embeds=embeds[0], negative_image_embeds=embeds[1])
    return adapted(pipe, r"attentions\.\d+\.to_[qkv]$"), given


def call(made, **more):
    pipe, given = made()
    given = {"num_inference_steps": 4, "height": 128, "width": 128, **given, **more}
    draw = torch.Generator().manual_seed(0)
    return pipe(**given, generator=draw, output_type="latent").images


def call_plainly(made, adapters_of_step, **more):
    """The mean of UNet calls under one adapter after the other, by PEFT alone."""
    pipe, _ = made()
    unet, own, count = pipe.unet, pipe.unet.forward, iter(range(100))

    def forward(*args, **kwargs):
        outputs = []
        for name in adapters_of_step(next(count)):
            unet.set_adapters([name], [1.0])
            outputs.append(own(*args, **{**kwargs, "return_dict": False})[0])
        return (sum(outputs) / len(outputs),)

    def with_output(*args, **kwargs):
        (mean,) = forward(*args, **kwargs)
        return (mean,) if kwargs.get("return_dict") is False else _Output(mean)

    unet.forward = with_output
    try:
        return call(made, **more)
    finally:
        del unet.forward
        unet.set_adapters(NAMES, [1.0, 1.0])


class _Output:
    def __init__(self, sample):
        self.sample = sample


MADE = [image_variation, pag, kandinsky]


@pytest.mark.parametrize("made", MADE)
def test_lossless(made):
    want = call(made)
    with cf.accelerate(made()[0]):
        assert relative(call(made), want) < RUN
    assert torch.equal(call(made), want)


@pytest.mark.parametrize("options", [{}, {"max_rows": 3}, {"weights": "delta"}])
@pytest.mark.parametrize("made", MADE)
def test_composite_is_the_mean_of_its_adapters(made, options):
    with cf.accelerate(made()[0], "composite", **options):
        got = call(made)
    assert relative(got, call_plainly(made, lambda i: NAMES)) < RUN


@pytest.mark.parametrize("made", MADE)
def test_switch_follows_the_steps(made):
    with cf.accelerate(made()[0], cf.Switch(switch_step=1)):
        got = call(made)
        steps = cf.summary(made()[0]).steps
    assert [step.dominant for step in steps] == [A, B, A, B]
    assert relative(got, call_plainly(made, lambda i: [NAMES[i % 2]])) < RUN


def test_pag_without_guidance():
    want = call(pag, guidance_scale=0.0)
    with cf.accelerate(pag()[0]):
        assert relative(call(pag, guidance_scale=0.0), want) < RUN


def test_pag_refreshes_an_adapter_for_all_images_or_none():
    """Its processors read the batch as parts of guidance: a deep pass over some would mix them."""
    method = cf.CMLoRA(variant="online", cache_interval=2, threshold=0.3)
    with cf.accelerate(pag()[0], method):
        got = call(pag, num_images_per_prompt=2)
        steps = cf.summary(pag()[0]).steps
    assert got.isfinite().all()
    assert {step.full_rows % 6 for step in steps} == {0} and steps[1].shallow_rows == 12


def test_a_loop_of_ones_own_is_a_run():
    """``set_timesteps`` begins it: a method follows the steps as in a pipeline's call."""
    pipe = adapters.fresh([A, B])
    inputs = loops.random_inputs(pipe, steps=8)
    with cf.accelerate(pipe, cf.CMLoRA(cache_interval=2)):
        want = loops.run_pipeline(pipe, inputs)
        ran = [(step.dominant, step.refreshed) for step in cf.summary(pipe).steps]

        def predict(i, x, t, text):
            return pipe.unet(x, t, encoder_hidden_states=text, return_dict=False)[0]

        for _ in range(2):
            assert relative(loops.denoise(pipe, predict, inputs), want) < RUN
            steps = cf.summary(pipe).steps
            assert [(step.dominant, step.refreshed) for step in steps] == ran
