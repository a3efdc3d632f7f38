"""The recorded traces of the released code and the model that they were recorded from."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import diffusers
import numpy as np
import torch
from safetensors.torch import load_file

from .helpers import text_encoder, tokenizer, vae

FOLDER = Path(__file__).parents[1] / "data" / "reference"
NAMES = sorted(path.stem for path in (FOLDER / "cmlora").glob("*.npz"))
ADAPTERS = sorted(path.stem.removeprefix("lora_") for path in FOLDER.glob("lora_*.safetensors"))
BETAS = dict(
    num_train_timesteps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    steps_offset=1,
)


def load(name: str) -> tuple[dict, dict]:
    """Spec and arrays of one trace."""
    with np.load(FOLDER / "cmlora" / f"{name}.npz") as file:
        arrays = dict(file)
    return json.loads(str(arrays.pop("spec"))), arrays


def scheduler(name: str = "dpm"):
    if name == "ddim":
        return diffusers.DDIMScheduler(**BETAS, set_alpha_to_one=False, clip_sample=False)
    return diffusers.DPMSolverMultistepScheduler(**BETAS, algorithm_type="dpmsolver++")


@functools.cache
def _weights(stem: str) -> dict[str, torch.Tensor]:
    return load_file(FOLDER / f"{stem}.safetensors")


def pipeline(adapters: list[str], sched: str = "dpm"):
    """The recorded UNet in a stock pipeline with these adapters loaded and active, weight 1."""
    config = json.loads((FOLDER / "unet_config.json").read_text())
    unet = diffusers.UNet2DConditionModel(**config).eval()
    unet.load_state_dict(_weights("unet"))
    words = tokenizer()
    pipe = diffusers.StableDiffusionPipeline(
        unet=unet,
        vae=vae(),
        tokenizer=words,
        text_encoder=text_encoder(len(words)),  # never asked: the embeddings are recorded
        scheduler=scheduler(sched),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    for name in adapters:
        source = name if name in ADAPTERS else "clothing_1"  # an adapter under a name of one's own
        pipe.load_lora_weights(dict(_weights(f"lora_{source}")), adapter_name=name)
    if adapters:
        pipe.set_adapters(adapters, [1.0] * len(adapters))
    return pipe


def inputs(spec: dict) -> dict:
    with np.load(FOLDER / "inputs.npz") as file:
        latents = torch.from_numpy(file[f"latents_{spec['hw']}"])
        prompt = torch.from_numpy(file["prompt_embeds"])
        negative = torch.from_numpy(file["negative_prompt_embeds"])
    return dict(
        prompt_embeds=prompt,
        negative_prompt_embeds=negative,
        latents=latents,
        num_inference_steps=spec["steps"],
        guidance_scale=3.0,
    )


def worst(got: torch.Tensor, want: torch.Tensor) -> float:
    """Over the steps, the largest absolute difference over that step's largest value."""
    got, want = got.flatten(1).double(), want.flatten(1).double()
    return ((got - want).abs().amax(1) / want.abs().amax(1)).max().item()
