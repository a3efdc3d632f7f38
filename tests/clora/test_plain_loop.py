"""The plain loop against the whole recorded runs: what other tests may then trust it for."""

import dataclasses
import json
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from ..support import clora_traces as recordings
from ..support.plain_loop import PlainLoop

FOLDER = Path(__file__).parents[1] / "data" / "reference"

pytestmark = [recordings.RECORDED, pytest.mark.slow]


def recorded_unet(adapters):
    config = json.loads((FOLDER / "unet_config.json").read_text())
    unet = diffusers.UNet2DConditionModel(**config).eval()
    unet.load_state_dict(load_file(FOLDER / "unet.safetensors"))
    for name in adapters:
        weights = load_file(FOLDER / f"lora_{name}.safetensors")
        unet.load_lora_adapter(weights, prefix="unet", adapter_name=name)
    return unet


def ddim():
    return diffusers.DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        set_alpha_to_one=False,
        clip_sample=False,
    )


def worst(got, want):
    """Over the steps, the largest difference over that step's largest value."""
    got, want = got.flatten(1), want.flatten(1)
    return ((got - want).abs().amax(1) / want.abs().amax(1)).max().item()


@pytest.mark.parametrize("name", recordings.NAMES)
def test_reproduces_recorded_run(name):
    spec, recorded = recordings.load(name)
    method = dataclasses.replace(
        recordings.method_of(spec),
        row_prompt_embeds=recorded["row_embeds"],
        row_negative_prompt_embeds=recorded["negative_embed"],
    )
    loop = PlainLoop(recorded_unet(method.adapters), ddim(), method, spec["guidance_scale"])
    run = loop.run(recorded["initial_latents"], spec["steps"])
    assert run.losses == pytest.approx(recorded["losses"].tolist(), rel=1e-5)
    assert worst(run.stacked("maps"), recorded["maps"]) < 1e-5
    assert torch.equal(run.stacked("masks"), recorded["masks"])
    assert worst(run.stacked("latents"), recorded["latents"]) < 1e-4
