"""What ``cmlora generate`` does once its options are read."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cmlora_fast as cf
from cmlora_fast.adapters.fit import check_lora
from cmlora_fast.eval import EMBEDDED, Generation, Job
from cmlora_fast.eval.paint import paint
from cmlora_fast.eval.presets import plain_preset
from cmlora_fast.report import document, each_step, progress, versions

from .images import save_png
from .lora_files import parse_specs
from .maps import save_maps
from .method_options import make_method
from .pipelines import add_loras, check_scheduler, load_pipeline, set_scheduler
from .requests import GenerateRequest

__all__ = ["run"]


def run(request: GenerateRequest) -> dict[str, Any]:
    """Paint the images; returns the JSON document."""
    request = request.filled(plain_preset(request.model))
    texts = (given or () for given in (request.method_option, request.concept, request.mask))
    method = make_method(request.method, *texts)
    specs = parse_specs(request.lora or (), request.model == EMBEDDED)
    check_scheduler(request.scheduler)
    files = [check_lora(spec.path) for spec in specs]  # before minutes of loading a large model
    pipe = load_pipeline(request.model, request.dtype, request.device)
    set_scheduler(pipe, request.scheduler)
    add_loras(pipe, specs, files)
    cf.enable(pipe, method, record=request.save_maps is not None, **request.engine)
    _warn_of_cut(pipe, request.prompt)
    started = time.perf_counter()
    images = _paint(pipe, request)
    seconds = time.perf_counter() - started
    summary = cf.summary(pipe)
    cf.disable(pipe)
    loras = [{"name": s.name, "path": str(s.path), "weight": s.weight} for s in specs]
    results: dict[str, Any] = {"images": list(map(str, _save(images, request, loras)))}
    if request.save_maps is not None:
        *_, strip = save_maps(request.save_maps, images[0], summary, request.prompt)
        results["filmstrip"] = str(strip)
    results |= {"seconds": seconds, "loras": loras, "summary": summary.to_dict()}
    return document("generate", asdict(request), **results)


def _warn_of_cut(pipe: Any, prompt: str) -> None:
    tokenizer = getattr(pipe, "tokenizer", None)
    if tokenizer is None:
        return
    count, most = len(tokenizer(prompt).input_ids), tokenizer.model_max_length
    if count > most:
        warnings.warn(
            f"the prompt has {count} tokens; the text encoder reads the first {most}", stacklevel=2
        )


def _paint(pipe: Any, request: GenerateRequest) -> list[Any]:
    own = ("steps", "guidance_scale", "height", "width")
    given = {name: getattr(request, name) for name in own}
    generation = Generation(request.model, "", request.negative, **given)
    job = Job(generation, request.prompt, (), None, request.seed)
    seeds = range(request.seed, request.seed + request.num_images)
    with progress(request.steps, "denoising") as advance:
        return paint(pipe, job, seeds, callback=each_step(advance))


def _save(
    images: Sequence[Any], request: GenerateRequest, loras: list[dict[str, Any]]
) -> list[Path]:
    paths = []
    for index, image in enumerate(images):
        # Each image has a generator of its own: it can be painted alone.
        own = replace(request, seed=request.seed + index, num_images=1)
        size = {"width": image.width, "height": image.height}
        parameters = {**asdict(own), **size, "loras": loras, "versions": versions()}
        paths.append(save_png(image, request.out, parameters))
    return paths
