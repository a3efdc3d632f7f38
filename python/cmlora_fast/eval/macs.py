"""Multiply-accumulates, counted: torch sees every product that runs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

import cmlora_fast as cf

__all__ = ["SD15", "count_unet", "macs_per_sample"]

# What differs from the defaults of UNet2DConditionModel in Stable Diffusion 1.5.
SD15 = {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}
TOKENS = 77
STEPS = 2  # one whole, one from the cache
PLACE = {"cache_layer_id": 0, "cache_block_id": 1}


class _HostTimesteps(DDIMScheduler):
    """Timesteps stay numbers: a meta tensor has no value to read."""

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        super().set_timesteps(num_inference_steps, device="cpu")


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Both products of attention; shapes (B, heads, tokens, width)."""
    B, heads, tokens, width = query
    return 2 * B * heads * tokens * key[-2] * (width + value[-1])


# torch counts the other fused attentions itself.
CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}


@contextmanager
def count_unet(unet: Any) -> Iterator[list[int]]:
    """Gives a list that gets the MACs of every UNet call inside the block.

    Enable the pipeline with ``backend="torch"``: products in other libraries are not seen.
    Products inside this package's own kernels (adapters beside the weights, ``weights="delta"``)
    are not seen by torch, and not counted.
    """
    counts: list[int] = []
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        before = [0]

        def start(*_: Any) -> None:
            before[0] = counter.get_total_flops()

        def stop(*_: Any) -> None:
            counts.append((counter.get_total_flops() - before[0]) // 2)

        hooks = [unet.register_forward_pre_hook(start), unet.register_forward_hook(stop)]
        try:
            yield counts
        finally:
            for hook in hooks:
                hook.remove()


def macs_per_sample(
    config: Mapping[str, Any], height: int, width: int, method: Any = None
) -> dict[str, int]:
    """MACs of a UNet of this shape for one sample: {"full", "shallow"}, without weights or data.

    A run without guidance on the meta device: one step whole, one from its cache.
    What the engine computes once per image (keys and values of the text) counts as full.

    Args:
        config: Of ``UNet2DConditionModel``; those that take more than text are refused.
        height: Pixels.
        width: Pixels.
        method: Where its cache sits (``cache_layer_id``, ``cache_block_id``); None: (0, 1).
    """
    if config.get("addition_embed_type") or config.get("encoder_hid_dim_type"):
        raise ValueError("macs_per_sample: expected a UNet that takes text and nothing more")
    place = {key: getattr(method, key, d) for key, d in PLACE.items()}
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(config)).eval()
        text = torch.empty(1, TOKENS, unet.config.cross_attention_dim)
        latents = torch.empty(1, unet.config.in_channels, height // 8, width // 8)
    pipe = StableDiffusionPipeline(
        vae=None,
        text_encoder=None,
        tokenizer=None,
        unet=unet,
        scheduler=_HostTimesteps(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    cf.enable(pipe, cf.Merge(cache_interval=STEPS, **place), backend="torch")
    given = {"prompt_embeds": text, "latents": latents, "guidance_scale": 1.0}
    with warnings.catch_warnings(), count_unet(unet) as counts:
        warnings.simplefilter("ignore")  # caching in so few steps is warned of
        pipe(**given, num_inference_steps=STEPS, output_type="latent")
    ran = [(step.full_rows, step.shallow_rows) for step in cf.summary(pipe).steps]
    assert ran == [(1, 0), (0, 1)], ran
    return {"full": counts[0], "shallow": counts[1]}
