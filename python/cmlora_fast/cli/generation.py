"""Shared options and a preset become a pipeline and what all of its images share."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from cmlora_fast import eval as lab
from cmlora_fast.eval.presets import Preset
from cmlora_fast.testbed.load import DATA

from .errors import CliError, one_line
from .generate_run import GUIDANCE
from .pipelines import EMBEDDED, load_pipeline, pick_device, set_scheduler

__all__ = ["ENGINE", "load_generation", "plain_preset"]

ENGINE = ("backend", "weights", "max_rows")  # options that cf.enable takes
STEPS = 20


def plain_preset(model: str) -> Preset:
    """What is painted with where no testbed has settings of its own."""
    return Preset(model, None, STEPS, GUIDANCE, None, None, scheduler=None, lora_scale=1.0)


def load_generation(
    arguments: dict[str, Any], preset: Preset, negative_prompt: str
) -> tuple[Any, lab.Generation]:
    """The pipeline without LoRAs, and the settings: the preset's, unless arguments say other."""
    a = arguments
    given = {key: own if a.get(key) is None else a[key] for key, own in asdict(preset).items()}
    dtype = a["dtype"]
    if dtype == "auto":
        dtype = "float16" if pick_device(a["device"]).startswith("cuda") else "float32"
    pipe = load_pipeline(given["model"], dtype, a["device"])
    if given["vae"]:
        pipe.vae = _vae(given["vae"], pipe)
    set_scheduler(pipe, given["scheduler"])
    generation = lab.Generation(
        **given,
        digest=lab.model_digest(_place(given["model"])),
        negative_prompt=negative_prompt,
        dtype=dtype,
        **{name: a[name] for name in ("guidance_rescale", "clip_skip", "eta")},
    )
    return pipe, generation


def _place(model: str) -> Any:
    if model != EMBEDDED:
        return model
    return DATA / "pipeline"


def _vae(place: str, pipe: Any) -> Any:
    from diffusers import AutoencoderKL

    try:
        vae = AutoencoderKL.from_pretrained(place, torch_dtype=pipe.vae.dtype)
    except Exception as error:
        raise CliError(f"--vae {place}: cannot be loaded: {one_line(error)}") from error
    return vae.to(pipe.device)
