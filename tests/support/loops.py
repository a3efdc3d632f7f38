"""Plain denoising loops: diffusers' UNet and scheduler and PEFT, nothing of ours."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager

import torch


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


Predict = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
Measure = Callable[[int, torch.Tensor], None]


@torch.no_grad()
def denoise(pipe, predict: Predict, inputs: dict, after: Measure | None = None) -> torch.Tensor:
    """All latents, one per step, (T, B, C, H, W); ``predict(i, x, t, text)`` sees both halves.

    Args:
        inputs: prompt_embeds, negative_prompt_embeds, latents, num_inference_steps, guidance_scale
            as a pipeline takes them; ``stop`` ends the loop early.
        after: Called with the step and the latents that the scheduler returned.
    """
    scheduler = pipe.scheduler
    scheduler.set_timesteps(inputs["num_inference_steps"])
    scale = inputs.get("guidance_scale", 4.0)
    guided = scale > 1
    text = inputs["prompt_embeds"]
    if guided:
        text = torch.cat([inputs["negative_prompt_embeds"], text])
    z = inputs["latents"] * scheduler.init_noise_sigma
    trajectory = []
    for i, t in enumerate(scheduler.timesteps[: inputs.get("stop")]):
        x = scheduler.scale_model_input(torch.cat([z, z]) if guided else z, t)
        eps = predict(i, x, t, text)
        if guided:
            unconditional, conditional = eps.chunk(2)
            eps = unconditional + scale * (conditional - unconditional)
        z = scheduler.step(eps, t, z, return_dict=False)[0]
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


def composed(pipe, steps, scales: dict[str, float], cut=(0, 1)) -> Predict:
    """Sequential predictions from a schedule written out by hand.

    Args:
        steps: ``steps[i]``, asked for once per step: the adapters that run (a name, or several
            joined by "+" that are active together; "" is the base) -> (share of the prediction,
            whether the deep part runs).
        scales: Adapter weight of each name.
    """
    caches = defaultdict(lambda: CachedUNet(pipe.unet, *cut))

    def predict(i, x, t, text, **more):
        total = 0
        for key, (share, full) in steps[i].items():
            names = [name for name in key.split("+") if name]
            with only(pipe.unet, *((name, scales[name]) for name in names)):
                eps = caches[key](x, t, encoder_hidden_states=text, reuse=not full, **more)
            total = total + share * eps
        return total

    return predict
