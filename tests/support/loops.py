"""The benchmarks' plain loops, with a feature cache for any cut, and calls of whole pipelines.

Diffusers' UNet and scheduler and PEFT: what the engine has to reproduce. The benchmarks' own cached
call skips the deep part of one cut; the one here runs everything and overwrites, at any.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager

import torch
from cmlora_fast.benchmarks.engine import loops


def cut_position(unet, layer: int, block: int) -> tuple[int, int]:
    """Up block and resnet at which the cached hidden state enters (cmlora spec §3.1)."""
    down = unet.down_blocks[layer]
    layer, pairs = (layer + 1, 0) if block == len(down.resnets) else (layer, block + 1)
    up = len(unet.up_blocks) - 1 - layer
    return up, len(unet.up_blocks[up].resnets) - 1 - pairs


def hidden_channels(unet, up: int, resnet: int) -> int:
    """Channels of the hidden state before that resnet's skip is concatenated to it."""
    if resnet > 0:
        return unet.up_blocks[up].resnets[resnet - 1].out_channels
    before = unet.up_blocks[up - 1] if up > 0 else unet.mid_block
    return before.resnets[-1].out_channels


class CachedUNet:
    """One adapter subset's UNet with a feature cache, computed the slow way.

    A shallow call runs everything and then overwrites the hidden state entering the cut with the
    cached one: the result is that of never having run the deep part.
    """

    def __init__(self, unet, layer: int = 0, block: int = 1):
        self.unet = unet
        up, resnet = cut_position(unet, layer, block)
        self.module = unet.up_blocks[up].resnets[resnet]
        self.channels = hidden_channels(unet, up, resnet)
        self.feature = None

    def __call__(self, *args, reuse: bool, **kwargs) -> torch.Tensor:
        reuse = reuse and self.feature is not None

        def swap(module, inputs):
            joined, *rest = inputs
            if not reuse:
                self.feature = joined[:, : self.channels].clone()
                return None
            return torch.cat([self.feature, joined[:, self.channels :]], 1), *rest

        handle = self.module.register_forward_pre_hook(swap)
        try:
            return self.unet(*args, **kwargs, return_dict=False)[0]
        finally:
            handle.remove()


@contextmanager
def only(unet, *adapters: tuple[str, float]):
    """These adapters active on the UNet, with these weights; afterwards all off."""
    if adapters:
        unet.enable_adapters()
        unet.set_adapters([name for name, _ in adapters], [weight for _, weight in adapters])
    elif getattr(unet, "peft_config", None):
        unet.disable_adapters()
    yield


Measure = Callable[[int, torch.Tensor], None]


@torch.no_grad()
def denoise(pipe, predict, inputs: dict, after: Measure | None = None) -> torch.Tensor:
    """All latents of the benchmarks' loop, one per step, (T, B, C, H, W).

    Args:
        inputs: As that loop's; ``stop`` ends it early.
        after: Called with the step and the latents that the scheduler returned.
    """
    trajectory = []
    steps = loops.denoise(pipe.scheduler, predict, {"guidance_scale": 4.0, **inputs})
    for i, z in enumerate(itertools.islice(steps, inputs.get("stop"))):
        trajectory.append(z)
        if after is not None:
            after(i, z)
    return torch.stack(trajectory)


@torch.no_grad()
def run_pipeline(pipe, inputs: dict, **given) -> torch.Tensor:
    """The latents after every step of the pipeline's own call, (T, B, C, H, W)."""
    trajectory = []

    def keep(pipe, i, t, tensors):
        trajectory.append(tensors["latents"].clone())
        return {}

    args = dict(output_type="latent", callback_on_step_end=keep, **inputs)
    if inputs.get("guidance_scale", 4.0) <= 1:
        args["negative_prompt_embeds"] = None
    pipe(**{**args, **given})
    return torch.stack(trajectory)


def random_inputs(pipe, *, images=1, steps=6, size=(16, 16), seed=0, **given) -> dict:
    """Embeddings and noise drawn per image, so that image k is the same in every batch."""
    width = pipe.unet.config.cross_attention_dim
    parts = []
    for image in range(images):
        draw = torch.Generator().manual_seed(1000 * seed + image)
        parts.append(
            [torch.randn(1, *shape, generator=draw) for shape in ((77, width), (4, *size))]
            + [torch.randn(1, 77, width, generator=torch.Generator().manual_seed(seed + 7))]
        )
    prompt, latents, negative = (torch.cat(column) for column in zip(*parts, strict=True))
    inputs = dict(prompt_embeds=prompt, negative_prompt_embeds=negative, latents=latents)
    return {**inputs, "num_inference_steps": steps, "guidance_scale": 4.0, **given}


def one_image(inputs: dict, image: int) -> dict:
    """Image k of a batch by itself."""
    tensors = ("prompt_embeds", "negative_prompt_embeds", "latents")
    return {k: v[image : image + 1] if k in tensors else v for k, v in inputs.items()}


def composed(pipe, steps, scales: dict[str, float], cut=(0, 1)) -> loops.Predict:
    """Sequential predictions from a schedule written out by hand.

    Args:
        steps: As those of the benchmarks' loop; a key is a name, or several joined by "+" that are
            active together; "" is the base.
        scales: Adapter weight of each name.
    """
    caches = defaultdict(lambda: CachedUNet(pipe.unet, *cut))

    def one(key, whole, x, t, text, **more):
        names = [name for name in key.split("+") if name]
        with only(pipe.unet, *((name, scales[name]) for name in names)):
            return caches[key](x, t, encoder_hidden_states=text, reuse=not whole, **more)

    return loops.composed(steps, one)
