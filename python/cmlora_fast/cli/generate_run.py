"""What ``cmlora generate`` does once its arguments are read."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import cmlora_fast as cf

from .images import save_png
from .lora_files import LoraSpec, parse_specs
from .method_options import make_method
from .pipelines import EMBEDDED, add_loras, load_pipeline, set_scheduler
from .progress import each_step, progress
from .report import versions

__all__ = ["run"]


def run(arguments: dict[str, Any], load: Callable[..., Any] = load_pipeline) -> dict[str, Any]:
    """Paint the images; returns what the JSON document tells of them.

    Args:
        arguments: The options of ``cmlora generate`` by name.
        load: Makes the pipeline of (model, dtype, device).
    """
    embedded = arguments["model"] == EMBEDDED
    method = make_method(arguments["method"], arguments["method_option"] or ())
    specs = parse_specs(arguments["lora"] or (), embedded)
    pipe = load(arguments["model"], arguments["dtype"], arguments["device"])
    set_scheduler(pipe, arguments["scheduler"])
    add_loras(pipe, specs)
    options = {key: arguments[key] for key in ("backend", "weights", "max_rows")}
    cf.enable(pipe, method, **options)
    started = time.perf_counter()
    images = _paint(pipe, arguments)
    seconds = time.perf_counter() - started
    summary = cf.summary(pipe).to_dict()
    cf.disable(pipe)
    paths = _save(images, arguments, specs)
    return {
        "images": [str(path) for path in paths],
        "seconds": seconds,
        "loras": _plain(specs),
        "summary": summary,
    }


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
