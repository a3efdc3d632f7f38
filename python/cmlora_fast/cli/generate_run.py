"""What ``cmlora generate`` does once its arguments are read."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import cmlora_fast as cf
from cmlora_fast.adapters.fit import check_lora

from .images import save_png
from .lora_files import LoraSpec, parse_specs
from .maps import save_maps
from .method_options import make_method
from .pipelines import EMBEDDED, add_loras, check_scheduler, load_pipeline, set_scheduler
from .progress import each_step, progress
from .report import versions

__all__ = ["run"]

GUIDANCE = 7.5  # diffusers' default; the embedded model was tried with it, too


def run(arguments: dict[str, Any], load: Callable[..., Any] = load_pipeline) -> dict[str, Any]:
    """Paint the images; returns what the JSON document tells of them.

    Args:
        arguments: The options of ``cmlora generate`` by name.
        load: Makes the pipeline of (model, dtype, device).
    """
    embedded = arguments["model"] == EMBEDDED
    if arguments["guidance_scale"] is None:
        arguments["guidance_scale"] = GUIDANCE
    parts = (arguments[key] or () for key in ("method_option", "concept", "mask"))
    method = make_method(arguments["method"], *parts)
    specs = parse_specs(arguments["lora"] or (), embedded)
    check_scheduler(arguments["scheduler"])
    files = [check_lora(spec.path) for spec in specs]  # before minutes of loading a large model
    pipe = load(arguments["model"], arguments["dtype"], arguments["device"])
    set_scheduler(pipe, arguments["scheduler"])
    add_loras(pipe, specs, files)
    options = {key: arguments[key] for key in ("backend", "weights", "max_rows")}
    folder = arguments["save_maps"]
    cf.enable(pipe, method, record=folder is not None, **options)
    _warn_of_cut(pipe, arguments["prompt"])
    started = time.perf_counter()
    images = _paint(pipe, arguments)
    seconds = time.perf_counter() - started
    summary = cf.summary(pipe)
    cf.disable(pipe)
    paths = _save(images, arguments, specs)
    maps = {}
    if folder is not None:
        *_, strip = save_maps(Path(folder), images[0], summary, arguments["prompt"])
        maps["filmstrip"] = str(strip)
    return {
        "images": [str(path) for path in paths],
        **maps,
        "seconds": seconds,
        "loras": _plain(specs),
        "summary": summary.to_dict(),
    }


def _warn_of_cut(pipe: Any, prompt: str) -> None:
    tokenizer = getattr(pipe, "tokenizer", None)
    if tokenizer is None:
        return
    count, most = len(tokenizer(prompt).input_ids), tokenizer.model_max_length
    if count > most:
        warnings.warn(
            f"the prompt has {count} tokens; the text encoder reads the first {most}", stacklevel=2
        )


def _paint(pipe: Any, arguments: dict[str, Any]) -> list[Any]:
    count = arguments["num_images"]
    size = {key: arguments[key] for key in ("height", "width") if arguments[key] is not None}
    draws = [torch.Generator().manual_seed(arguments["seed"] + i) for i in range(count)]
    with progress(arguments["steps"], "denoising") as advance:
        return pipe(
            prompt=arguments["prompt"],
            negative_prompt=arguments["negative"],
            num_inference_steps=arguments["steps"],
            guidance_scale=arguments["guidance_scale"],
            num_images_per_prompt=count,
            generator=draws,
            callback_on_step_end=each_step(advance),
            **size,
        ).images


def _save(images: list[Any], arguments: dict[str, Any], specs: list[LoraSpec]) -> list[Path]:
    paths = []
    for index, image in enumerate(images):
        parameters = {
            **arguments,
            "seed": arguments["seed"] + index,
            "num_images": 1,  # each image has a generator of its own: it can be painted alone
            "width": image.width,
            "height": image.height,
            "loras": _plain(specs),
            "versions": versions(),
        }
        paths.append(save_png(image, Path(arguments["out"]), parameters))
    return paths


def _plain(specs: list[LoraSpec]) -> list[dict[str, Any]]:
    return [{"name": s.name, "path": str(s.path), "weight": s.weight} for s in specs]
