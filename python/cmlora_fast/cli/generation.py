"""Options and a preset become a pipeline and what all of its images share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from cmlora_fast import eval as lab
from cmlora_fast import testbed
from cmlora_fast.adapters.file import LoraFile
from cmlora_fast.eval.jobs import digest
from cmlora_fast.eval.presets import plain_preset

from .errors import CliError, one_line
from .lora_files import LoraSpec, embedded_style, parse_specs
from .pipelines import add_loras, load_pipeline, pick_device, set_scheduler
from .requests import EvalRequest, LoraRequest

__all__ = ["adapters_of", "load_generation", "load_with_loras", "parse_loras", "prompt_for"]


def load_generation(
    request: LoraRequest | EvalRequest, negative_prompt: str
) -> tuple[Any, lab.Generation]:
    """The pipeline without LoRAs, and the settings, of options that a preset has filled."""
    dtype = request.dtype
    if dtype == "auto":
        dtype = "float16" if pick_device(request.device).startswith("cuda") else "float32"
    own = {f.name: getattr(request, f.name) for f in fields(request)}
    pipe = load_pipeline(request.model, dtype, request.device)
    if own.get("vae"):
        pipe.vae = _vae(own["vae"], pipe)
    set_scheduler(pipe, request.scheduler)
    place = testbed.DATA / "pipeline" if request.model == lab.EMBEDDED else request.model
    shared = {f.name: own[f.name] for f in fields(lab.Generation) if f.name in own}
    shared |= {"digest": lab.model_digest(place), "dtype": dtype}
    return pipe, lab.Generation(**shared, negative_prompt=negative_prompt)


def parse_loras(request: LoraRequest) -> tuple[list[LoraSpec], str | None]:
    """The LoRAs, and the style of the embedded testbed that all of them are of, if any."""
    is_embedded = request.model == lab.EMBEDDED
    specs = parse_specs(request.lora, is_embedded)
    return specs, embedded_style(specs) if is_embedded else None


def prompt_for(request: LoraRequest, specs: Sequence[LoraSpec], style: str | None) -> str:
    """The given prompt, or the trigger words."""
    if request.prompt is not None:
        return request.prompt
    if style:
        return testbed.prompt([spec.name for spec in specs], style)
    raise CliError("--prompt: expected a text; only embedded LoRAs bring trigger words")


def adapters_of(specs: Sequence[LoraSpec]) -> tuple[lab.Adapter, ...]:
    return tuple(lab.Adapter(spec.name, digest(spec.path), spec.weight) for spec in specs)


def load_with_loras(
    request: LoraRequest, specs: Sequence[LoraSpec], files: Sequence[LoraFile]
) -> tuple[Any, lab.Generation]:
    """As ``load_generation``, with checked files loaded."""
    negative = request.negative
    if negative is None:
        negative = testbed.NEGATIVE_PROMPT if request.model == lab.EMBEDDED else ""
    pipe, generation = load_generation(request.filled(plain_preset(request.model)), negative)
    add_loras(pipe, specs, files)
    return pipe, generation


def _vae(place: str, pipe: Any) -> Any:
    from diffusers import AutoencoderKL

    try:
        vae = AutoencoderKL.from_pretrained(place, torch_dtype=pipe.vae.dtype)
    except Exception as error:
        raise CliError(f"--vae {place}: cannot be loaded: {one_line(error)}") from error
    return vae.to(pipe.device)
