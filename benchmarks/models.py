"""Pipelines of random weights in the shape of real models, and adapters for them.

What a UNet costs does not depend on what it has learnt; nothing is downloaded.
"""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from peft import LoraConfig
from torch import Tensor

__all__ = ["adapter_names", "call_inputs", "load_adapters", "sd_pipeline", "sdxl_pipeline"]

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
PROJECTIONS = ("proj_in", "proj_out")
TARGETS = (*ATTENTION, *FEED_FORWARD, *PROJECTIONS)
TEXT_WIDTH = 768
XL_TEXT_WIDTH, XL_POOLED_WIDTH = 2048, 1280
STEPS_OF_TRAINING = 1000


def _scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        num_train_timesteps=STEPS_OF_TRAINING,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        set_alpha_to_one=False,
        clip_sample=False,
    )


def sd_pipeline(channels: tuple[int, ...], dtype: torch.dtype = torch.float32):
    """Stable Diffusion 1.5's UNet with these channels per block, and no text encoder."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=channels,
        down_block_types=(*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
        up_block_types=("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=8,
    )
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(32,) * 4, norm_num_groups=8),
        text_encoder=None,
        tokenizer=None,
        unet=unet.to(dtype).eval().requires_grad_(False),
        scheduler=_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def adapter_names(count: int) -> list[str]:
    """The last of several is a background, so that CMLoRA has two stages."""
    names = [f"character_{i}" for i in range(1, count)]
    return [*names, "background_1"] if count > 1 else ["character_1"]


def load_adapters(pipe, count: int, rank: int = 16, strength: float = 0.02) -> list[str]:
    """Random adapters on attention, feed-forward and projections, and no others on the UNet.

    ``strength``: standard deviation of B, which PEFT starts at zero.
    """
    names = adapter_names(count)
    for name in list(getattr(pipe.unet, "peft_config", {})):
        pipe.unet.delete_adapters(name)
    for i, name in enumerate(names):
        torch.manual_seed(1 + i)
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(TARGETS))
        pipe.unet.add_adapter(config, adapter_name=name)
    for name, parameter in pipe.unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=strength)
    pipe.unet.requires_grad_(False)
    pipe.unet.set_adapters(names)
    return names


def call_inputs(pipe, size: int, steps: int, images: int = 1, seed: int = 0) -> dict[str, Tensor]:
    """Arguments of ``pipe()`` for latents of ``size`` squared: random embeddings and noise."""
    draw = torch.Generator().manual_seed(seed)
    dtype = pipe.unet.dtype
    width = pipe.unet.config.cross_attention_dim
    text, negative = (torch.randn(images, 77, width, generator=draw).to(dtype) for _ in range(2))
    noise = torch.randn(images, 4, size, size, generator=draw).to(dtype)
    pooled = {}
    if pipe.unet.config.addition_embed_type == "text_time":
        for name in ("pooled_prompt_embeds", "negative_pooled_prompt_embeds"):
            pooled[name] = torch.randn(images, XL_POOLED_WIDTH, generator=draw).to(dtype)
    return {
        **pooled,
        "prompt_embeds": text,
        "negative_prompt_embeds": negative,
        "latents": noise,
        "num_inference_steps": steps,
        "guidance_scale": 7.5,
        "output_type": "latent",
    }


def sdxl_pipeline(
    channels: tuple[int, ...], dtype: torch.dtype = torch.float32, text_width: int = XL_TEXT_WIDTH
):
    """Stable Diffusion XL's UNet with these channels per block, and no text encoders."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=128,
        block_out_channels=channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=tuple(max(1, c // 64) for c in channels),
        cross_attention_dim=text_width,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=XL_POOLED_WIDTH + 6 * 256,
    )
    pipe = StableDiffusionXLPipeline(
        vae=AutoencoderKL(block_out_channels=(32,) * 4, norm_num_groups=8),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=unet.to(dtype).eval().requires_grad_(False),
        scheduler=_scheduler(),
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
