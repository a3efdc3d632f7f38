"""Straightforward denoising loops with diffusers and PEFT: what one would write without us.

One adapter after the other: PEFT's ``set_adapters``, a UNet call on the guided batch, a weighted
sum. Nothing is repeated that need not be, nothing is folded or batched over adapters. The
benchmarks race ``composite`` and ``cmlora``; the tests check the engine against ``denoise`` and
``composed`` with slower predictions of their own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from cmlora_fast import CMLoRA
from cmlora_fast.schedule.corrected import plan
from torch import Tensor, nn

__all__ = ["cmlora", "composed", "composite", "deep_part", "denoise"]

Predict = Callable[..., Tensor]
Shares = Mapping[str, tuple[float, bool]]  # adapters -> share of the prediction, runs whole


@torch.no_grad()
def denoise(scheduler, predict: Predict, inputs: dict) -> Iterator[Tensor]:
    """The latents after every step; ``predict(i, x, t, text)`` sees both halves of guidance.

    Args:
        inputs: prompt_embeds, negative_prompt_embeds, latents, num_inference_steps, guidance_scale
            as a pipeline takes them.
    """
    scheduler.set_timesteps(inputs["num_inference_steps"])
    scale, text = inputs["guidance_scale"], inputs["prompt_embeds"]
    guided = scale > 1
    if guided:
        text = torch.cat([inputs["negative_prompt_embeds"], text])
    z = inputs["latents"] * scheduler.init_noise_sigma
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.scale_model_input(torch.cat([z, z]) if guided else z, t)
        noise = predict(i, x, t, text)
        if guided:
            unconditional, conditional = noise.chunk(2)
            noise = unconditional + scale * (conditional - unconditional)
        z = scheduler.step(noise, t, z, return_dict=False)[0]
        yield z


def composed(steps: Sequence[Shares], one: Callable[..., Tensor]) -> Predict:
    """The weighted sum of one prediction per adapter, one after the other.

    Args:
        steps: ``steps[i]``, asked for once per step: adapters -> (share, whether they run whole).
        one: ``one(adapters, whole, x, t, text, **more)``, the prediction under these adapters.
    """

    def predict(i: int, x: Tensor, t: Tensor, text: Tensor, **more: object) -> Tensor:
        total = 0
        for key, (share, whole) in steps[i].items():
            total = total + share * one(key, whole, x, t, text, **more)
        return total

    return predict


def composite(pipe, names: Sequence[str], inputs: dict) -> Tensor:
    """Final latents of LoRA Composite: the mean of one prediction per adapter, no cache."""

    def one(name: str, whole: bool, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        pipe.unet.set_adapters(name)
        return pipe.unet(x, t, encoder_hidden_states=text, return_dict=False)[0]

    steps = [{name: (1 / len(names), True) for name in names}] * inputs["num_inference_steps"]
    return _last(denoise(pipe.scheduler, composed(steps, one), inputs))


def cmlora(pipe, names: Sequence[str], inputs: dict) -> Tensor:
    """Final latents of CMLoRA with its default schedule and one feature cache per adapter."""
    schedule = plan(CMLoRA(), names, inputs["num_inference_steps"])
    subsets = [subset[0] for subset in schedule.subsets]
    steps = [
        {
            subsets[group]: (share, whole)
            for group, share, whole in zip(
                step.groups, step.early.weights, step.early.refresh, strict=True
            )
        }
        for step in schedule.steps
    ]
    features: dict[str, Tensor] = {}

    def one(name: str, whole: bool, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        pipe.unet.set_adapters(name)
        feature = None if whole else features[name]
        noise, features[name] = _cached_call(pipe.unet, x, t, text, feature)
        return noise

    return _last(denoise(pipe.scheduler, composed(steps, one), inputs))


def _last(trajectory: Iterator[Tensor]) -> Tensor:
    (latents,) = deque(trajectory, maxlen=1)
    return latents


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
