"""Straightforward denoising loops with diffusers and PEFT: what one would write without us.

One adapter after the other: PEFT's ``set_adapters``, a UNet call on the guided batch, a weighted
sum. Nothing is repeated that need not be, nothing is folded or batched over adapters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from cmlora_fast import CMLoRA
from cmlora_fast.schedule.corrected import plan
from torch import Tensor, nn

__all__ = ["cmlora", "composite", "deep_part"]


@torch.no_grad()
def composite(pipe, names: Sequence[str], inputs: dict) -> Tensor:
    """Final latents of LoRA Composite: the mean of one prediction per adapter, no cache."""

    def predict(i: int, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        total = None
        for name in names:
            pipe.unet.set_adapters(name)
            noise = pipe.unet(x, t, encoder_hidden_states=text, return_dict=False)[0]
            total = noise if total is None else total + noise
        return total / len(names)

    return _denoise(pipe.scheduler, predict, inputs)


@torch.no_grad()
def cmlora(pipe, names: Sequence[str], inputs: dict) -> Tensor:
    """Final latents of CMLoRA with its default schedule and one feature cache per adapter."""
    schedule = plan(CMLoRA(), names, inputs["num_inference_steps"])
    features: dict[int, Tensor] = {}

    def predict(i: int, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        step, total = schedule.steps[i], 0
        choice = step.early
        for group, refresh, weight in zip(step.groups, choice.refresh, choice.weights, strict=True):
            pipe.unet.set_adapters(schedule.subsets[group][0])
            noise, features[group] = _cached_call(
                pipe.unet, x, t, text, None if refresh else features[group]
            )
            total = total + weight * noise
        return total

    return _denoise(pipe.scheduler, predict, inputs)


def _denoise(scheduler, predict, inputs: dict) -> Tensor:
    scheduler.set_timesteps(inputs["num_inference_steps"])
    text = torch.cat([inputs["negative_prompt_embeds"], inputs["prompt_embeds"]])
    z = inputs["latents"] * scheduler.init_noise_sigma
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.scale_model_input(torch.cat([z, z]), t)
        unconditional, conditional = predict(i, x, t, text).chunk(2)
        noise = unconditional + inputs["guidance_scale"] * (conditional - unconditional)
        z = scheduler.step(noise, t, z, return_dict=False)[0]
    return z


def _cached_call(unet: nn.Module, x: Tensor, t: Tensor, text: Tensor, feature: Tensor | None):
    """A prediction and the feature that entered the last up block: given, or made on the way."""
    embedding = unet.time_embedding(unet.time_proj(t.expand(x.shape[0])).to(x.dtype))
    skips = _way_down(unet, x, embedding, text)
    if feature is None:
        feature = deep_part(unet, skips[-1], embedding, text)
    return _shallow_part(unet, skips, feature, embedding, text), feature


def _way_down(unet: nn.Module, x: Tensor, embedding: Tensor, text: Tensor) -> tuple[Tensor, ...]:
    """The skips of the first down block, without its downsampler."""
    skips = [unet.conv_in(x)]
    block = unet.down_blocks[0]
    for resnet, attention in zip(block.resnets, block.attentions, strict=True):
        hidden = resnet(skips[-1], embedding)
        skips.append(attention(hidden, encoder_hidden_states=text, return_dict=False)[0])
    return tuple(skips)


def deep_part(unet: nn.Module, hidden: Tensor, embedding: Tensor, text: Tensor) -> Tensor:
    """From the first downsampler to what enters the last up block."""
    hidden = unet.down_blocks[0].downsamplers[0](hidden)
    skips = [hidden]
    for block in unet.down_blocks[1:]:
        hidden, more = block(hidden, embedding, **_text(block, text))
        skips += more
    hidden = unet.mid_block(hidden, embedding, encoder_hidden_states=text)
    for block in unet.up_blocks[:-1]:
        count = len(block.resnets)
        hidden = block(hidden, tuple(skips[-count:]), embedding, **_text(block, text))
        del skips[-count:]
    return hidden


def _shallow_part(
    unet: nn.Module, skips: tuple[Tensor, ...], feature: Tensor, embedding: Tensor, text: Tensor
) -> Tensor:
    """The last up block and the output layers."""
    hidden = unet.up_blocks[-1](feature, skips, embedding, encoder_hidden_states=text)
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))


def _text(block: nn.Module, text: Tensor) -> dict[str, Tensor]:
    return {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}
