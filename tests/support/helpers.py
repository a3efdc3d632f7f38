"""Tiny random pipelines and adapters: everything diffusers loads, nothing to download."""

from __future__ import annotations

import dataclasses

import diffusers
import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

torch.set_num_threads(1)  # two threads on two shared cores spin: measured 20 times slower here

WIDTH = 32  # of a text encoder; SDXL concatenates two of them
PROMPT = "a fox in a green coat"
NEGATIVE = "blurry"

UNETS = {
    "sd15": dict(  # the block types of SD 1.5, two layers each
        sample_size=16,
        block_out_channels=(32, 64, 64, 64),
        layers_per_block=2,
        down_block_types=(*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
        up_block_types=("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
    ),
    "dummy": dict(  # diffusers' own test size: one layer, no attention in the outermost block
        sample_size=16,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=4,
    ),
    "one_layer": dict(  # the embedded model's shape: four blocks of one layer
        sample_size=16,
        block_out_channels=(16, 32, 32, 32),
        layers_per_block=1,
        down_block_types=(*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
        up_block_types=("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    ),
    "sdxl": dict(  # three blocks, attention in the inner two, linear projections, added embeddings
        sample_size=16,
        block_out_channels=(16, 32, 32),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=2 * WIDTH,
        attention_head_dim=(2, 4, 4),
        transformer_layers_per_block=(1, 1, 2),
        use_linear_projection=True,
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
    ),
}

_BETAS = dict(
    num_train_timesteps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    steps_offset=1,
)
SCHEDULERS = {
    "ddim": lambda: diffusers.DDIMScheduler(**_BETAS, set_alpha_to_one=False, clip_sample=False),
    "pndm": lambda: diffusers.PNDMScheduler(**_BETAS, skip_prk_steps=True),
    "euler": lambda: diffusers.EulerDiscreteScheduler(**_BETAS),
    "euler_a": lambda: diffusers.EulerAncestralDiscreteScheduler(**_BETAS),
    "dpm": lambda: diffusers.DPMSolverMultistepScheduler(**_BETAS, algorithm_type="dpmsolver++"),
    "unipc": lambda: diffusers.UniPCMultistepScheduler(**_BETAS),
    "lcm": lambda: diffusers.LCMScheduler(**{**_BETAS, "steps_offset": 0}),
    "heun": lambda: diffusers.HeunDiscreteScheduler(**_BETAS),
}
KINDS = ["sd", "img2img", "inpaint", "controlnet", "sdxl"]


def tokenizer() -> CLIPTokenizer:
    """Letters, digits and punctuation, a few whole words, start and end last (as in CLIP)."""
    letters = [chr(code) for code in range(33, 127)]
    merges, words = [], ["fox", "coat", "green", "bear", "hat"]
    for word in words:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
    merges = list(dict.fromkeys(merges))
    tokens = letters + [c + "</w>" for c in letters] + [a + b for a, b in merges]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)}, merges=merges, model_max_length=77
    )


def text_encoder(vocab: int, *, projected: bool = False):
    config = CLIPTextConfig(
        vocab_size=vocab,
        hidden_size=WIDTH,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        projection_dim=WIDTH,
        bos_token_id=vocab - 2,
        eos_token_id=vocab - 1,
        pad_token_id=vocab - 1,
    )
    model = (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)
    return model.eval()


def vae() -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),  # four blocks: a factor of eight, as the real ones
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=4,
    ).eval()


def unet(shape: str = "sd15", **overrides) -> diffusers.UNet2DConditionModel:
    return diffusers.UNet2DConditionModel(**{**UNETS[shape], **overrides}).eval()


def controlnet(base: diffusers.UNet2DConditionModel) -> diffusers.ControlNetModel:
    net = diffusers.ControlNetModel.from_unet(base, conditioning_channels=3)
    for name, weight in net.named_parameters():  # its zero convolutions would add nothing
        if name.startswith("controlnet_"):
            torch.nn.init.normal_(weight, std=0.2)
    return net.eval()


def pipeline(kind: str = "sd", shape: str | None = None, scheduler: str = "ddim", seed: int = 0):
    """A random pipeline of one of KINDS; equal arguments give equal weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        denoiser = unet(shape or ("sdxl" if kind == "sdxl" else "sd15"))
        words = tokenizer()
        parts = dict(
            unet=denoiser,
            vae=vae(),
            tokenizer=words,
            text_encoder=text_encoder(len(words)),
            scheduler=SCHEDULERS[scheduler](),
            feature_extractor=None,
        )
        if kind == "controlnet":
            parts["controlnet"] = controlnet(denoiser)
        if kind == "sdxl":
            parts["tokenizer_2"] = tokenizer()
            parts["text_encoder_2"] = text_encoder(len(words), projected=True)
        else:
            parts.update(safety_checker=None, requires_safety_checker=False)
    pipe = _PIPELINES[kind](**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


_PIPELINES = {
    "sd": diffusers.StableDiffusionPipeline,
    "img2img": diffusers.StableDiffusionImg2ImgPipeline,
    "inpaint": diffusers.StableDiffusionInpaintPipeline,
    "controlnet": diffusers.StableDiffusionControlNetPipeline,
    "sdxl": diffusers.StableDiffusionXLPipeline,
}


def kind_of(pipe) -> str:
    return next(kind for kind, cls in _PIPELINES.items() if type(pipe) is cls)


def arguments(kind: str, *, height: int = 128, width: int = 128, seed: int = 0, **given) -> dict:
    """Keyword arguments of a seeded call: ten guided steps, latents out; ``given`` replaces."""
    draw = torch.Generator().manual_seed(seed + 100)
    image = torch.rand(1, 3, height, width, generator=draw)
    args = dict(num_inference_steps=10, guidance_scale=4.0, output_type="latent")
    if kind != "img2img":
        args.update(height=height, width=width)
    if "prompt_embeds" not in given:
        args.update(prompt=PROMPT, negative_prompt=NEGATIVE)
    if kind in ("img2img", "inpaint"):
        args.update(image=image * 2 - 1, strength=0.8)
    if kind == "inpaint":
        args["mask_image"] = (torch.arange(width) < width // 2).float().expand(1, 1, height, width)
    if kind == "controlnet":
        args["image"] = image
    args["generator"] = torch.Generator().manual_seed(seed)
    return {**args, **given}


def call(pipe, **given):
    """Latents (or whatever ``output_type`` asks for) of one seeded call."""
    return pipe(**arguments(kind_of(pipe), **given)).images


def unet_inputs(pipe, *, batch: int = 2, size=(16, 16), seed: int = 0) -> dict:
    """Keyword arguments of a call of the UNet alone."""
    draw = torch.Generator().manual_seed(seed)
    config = pipe.unet.config
    given = dict(
        sample=torch.randn(batch, config.in_channels, *size, generator=draw),
        timestep=torch.tensor(301),
        encoder_hidden_states=torch.randn(batch, 77, config.cross_attention_dim, generator=draw),
        return_dict=False,
    )
    if config.addition_embed_type == "text_time":
        given["added_cond_kwargs"] = dict(
            text_embeds=torch.randn(batch, WIDTH, generator=draw),
            time_ids=torch.tensor([[128.0, 128.0, 0.0, 0.0, 128.0, 128.0]]).repeat(batch, 1),
        )
    return given


def label(value) -> str:
    """A short test id: of a method only the fields that differ from their defaults."""
    if not dataclasses.is_dataclass(value):
        return str(value)
    given = [
        f"{field.name}={getattr(value, field.name)}"
        for field in dataclasses.fields(value)
        if getattr(value, field.name) != field.default
    ]
    return f"{type(value).__name__}({', '.join(given)})"


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    """Largest absolute difference over largest absolute value; nan where either has one."""
    assert got.shape == want.shape, (got.shape, want.shape)
    got, want = got.double(), want.double()
    return ((got - want).abs().max() / want.abs().max()).item()
