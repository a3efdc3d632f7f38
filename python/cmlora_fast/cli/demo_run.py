"""The cells of the demo's contact sheet, and how they are painted."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import cmlora_fast as cf

from .errors import CliError
from .generate_run import GUIDANCE
from .pipelines import EMBEDDED, load_pipeline
from .progress import each_step, progress
from .sheet import Tile, contact_sheet

__all__ = ["Cell", "Scene", "cells_of", "embedded_scene", "paint_demo"]

# LoRAs of something, worn, somewhere, and the words of the prompt that CLoRA looks for.
SUBJECTS = {
    "character_1": "pink afro hair",
    "clothing_2": "bow tie",
    "background_1": "bamboo stalks",
}
LORAS = tuple(SUBJECTS)
WEIGHTS = {"background_1": 0.65}  # at 1 it leaves little of the person
COLUMNS = 6
SHEET = "contact_sheet.png"
METHODS = (
    ("merge", "Merge", cf.Merge()),
    ("switch", "Switch", cf.Switch()),
    ("composite", "Composite", cf.Composite()),
    ("cmlora_offline", "CMLoRA offline", cf.CMLoRA(variant="offline")),
    ("cmlora_online", "CMLoRA online", cf.CMLoRA(variant="online")),
    ("cmlora_async", "CMLoRA async", cf.CMLoRA(variant="async")),
)


@dataclass(frozen=True)
class Cell:
    """One picture: its file stem, its label, the active adapters and the method."""

    key: str
    label: str
    adapters: tuple[str, ...]
    method: Any = None


@dataclass(frozen=True)
class Scene:
    """What every cell has in common: adapters with their readable names, and the prompt.

    ``weights`` names the adapters whose weight is not 1.
    """

    adapters: dict[str, str]
    prompt: str
    negative: str = ""
    guidance_scale: float = GUIDANCE
    weights: Mapping[str, float] = field(default_factory=dict)
    concepts: tuple[cf.Concept, ...] = ()


def cells_of(scene: Scene) -> list[Cell]:
    """No LoRA, each alone, then all of them by every method; CLoRA where there are concepts."""
    adapters = scene.adapters
    alone = [Cell(name, f"{label} alone", (name,)) for name, label in adapters.items()]
    names = tuple(adapters)
    together = [Cell(key, label, names, method) for key, label, method in METHODS]
    if scene.concepts:
        together.append(Cell("clora", "CLoRA", names, cf.CLoRA(concepts=scene.concepts)))
    return [Cell("no_lora", "no LoRA", ()), *alone, *together]


def embedded_scene() -> tuple[Any, Scene]:
    """The embedded model with the demo's LoRAs loaded."""
    from cmlora_fast import testbed

    pipe = load_pipeline(EMBEDDED)
    try:
        testbed.load_loras(pipe, list(LORAS))
    except OSError as error:
        raise CliError("the embedded LoRAs are missing from this installation") from error
    named = {entry["id"]: entry["name"] for kind in testbed.lora_info().values() for entry in kind}
    labels = {name: named[name] for name in LORAS}
    concepts = tuple(cf.Concept(name, words) for name, words in SUBJECTS.items())
    prompt = testbed.prompt(LORAS)
    negative = testbed.NEGATIVE_PROMPT
    return pipe, Scene(labels, prompt, negative, weights=WEIGHTS, concepts=concepts)


def paint_demo(
    pipe: Any,
    scene: Scene,
    *,
    out: Path,
    steps: int,
    seed: int,
    cells: Sequence[Cell] | None = None,
) -> dict[str, Any]:
    """Paint every cell and the sheet into ``out``; returns what the report tells of them."""
    cells = cells_of(scene) if cells is None else cells
    folder = out / "images"
    folder.mkdir(parents=True, exist_ok=True)
    tiles, told = [], []
    with progress(steps * len(cells), "warming up") as advance:
        _paint(pipe, scene, cells[0], 1, seed)  # the first call pays for what torch sets up
        for cell in cells:
            advance(0, description=cell.label)
            image, seconds, summary = _paint(pipe, scene, cell, steps, seed, each_step(advance))
            path = folder / f"{cell.key}.png"
            image.save(path)
            tiles.append(Tile(cell.label, image, f"{seconds:.2f} s"))
            told.append(_told(cell, path, seconds, summary))
    _activate(pipe, scene, list(scene.adapters))
    title = f"{scene.prompt}\nseed {seed} · {steps} steps · guidance {scene.guidance_scale:g}"
    for name, weight in scene.weights.items():
        title += f" · {scene.adapters[name]} at weight {weight:g}"
    sheet = out / SHEET
    contact_sheet(tiles, title, columns=COLUMNS).save(sheet)
    given = {"prompt": scene.prompt, "negative": scene.negative, "adapters": scene.adapters}
    return {"sheet": str(sheet), **given, "weights": dict(scene.weights), "cells": told}


def _paint(
    pipe: Any, scene: Scene, cell: Cell, steps: int, seed: int, callback: Any = None
) -> tuple[Any, float, dict[str, Any]]:
    _activate(pipe, scene, cell.adapters)
    with cf.accelerate(pipe, cell.method):
        started = time.perf_counter()
        image = pipe(
            scene.prompt,
            negative_prompt=scene.negative,
            num_inference_steps=steps,
            guidance_scale=scene.guidance_scale,
            generator=torch.Generator().manual_seed(seed),
            callback_on_step_end=callback,
        ).images[0]
        seconds = time.perf_counter() - started
        return image, seconds, cf.summary(pipe).to_dict()


def _activate(pipe: Any, scene: Scene, adapters: Sequence[str]) -> None:
    """Exactly these; for none, LoRA layers are off altogether and cost no time."""
    if adapters:
        pipe.enable_lora()
        pipe.set_adapters(list(adapters), [scene.weights.get(name, 1.0) for name in adapters])
    else:
        pipe.disable_lora()


def _told(cell: Cell, path: Path, seconds: float, summary: dict[str, Any]) -> dict[str, Any]:
    return {
        "key": cell.key,
        "label": cell.label,
        "adapters": list(cell.adapters),
        "image": str(path),
        "seconds": seconds,
        "full": sum(step["full_rows"] for step in summary["steps"]),
        "shallow": sum(step["shallow_rows"] for step in summary["steps"]),
        "summary": summary,
    }
