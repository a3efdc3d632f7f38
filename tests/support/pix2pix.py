"""A pipeline with guidance in three parts."""

import diffusers
import torch

from . import adapters, helpers

NAMES = ["character_1", "style_1"]


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
