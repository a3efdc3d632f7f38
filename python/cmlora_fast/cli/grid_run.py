"""What ``cmlora grid`` does once its arguments are read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from PIL import Image

from cmlora_fast import eval as lab
from cmlora_fast.adapters.fit import check_lora
from cmlora_fast.eval.grid import Cell, make_cells, page
from cmlora_fast.eval.paint import paint_all
from cmlora_fast.eval.scorers import Scene
from cmlora_fast.report import document, progress

from .errors import CliError
from .generation import adapters_of, load_with_loras, parse_loras, prompt_for
from .lora_files import LoraSpec
from .method_list import NO_LORA, cached, parse_methods
from .options import words
from .pipelines import check_scheduler
from .requests import GridRequest
from .scorer_list import make_scorers
from .sheet import Tile, contact_sheet

__all__ = ["run"]

SCORERS = ("embedded", "clip", "reward")  # the others need more than the image
SHOWN = ("recall", "clip", "image_reward")  # below an image
LARGEST = 512  # pixels of an image in the PNG


def run(request: GridRequest) -> dict[str, Any]:
    """Paint the grid; returns the JSON document."""
    methods = parse_methods(request.methods)
    methods.pop(NO_LORA, None)  # has a column anyway
    methods = cached(methods, words(request.intervals))
    check_scheduler(request.scheduler)
    specs, style = parse_loras(request)
    sets, factors = _sets(request.sets, specs), _factors(request.weight)
    prompts = {label: prompt_for(request, members, style) for label, members in sets.items()}
    files = [check_lora(spec.path) for spec in specs]
    scorers = _scorers(request, style)
    pipe, generation = load_with_loras(request, specs, files)
    adapters = {label: adapters_of(members) for label, members in sets.items()}
    seeds = range(request.seed, request.seed + request.seeds)
    cells = make_cells(adapters, prompts, methods, factors, seeds, generation)
    store = lab.ImageStore(request.out, lab.Painted)
    jobs = list({cell.job.key: cell.job for cell in cells}.values())
    with progress(len(jobs), "images") as advance:
        paint_all(pipe, jobs, store, lambda job: advance(), **request.engine)
    scores = [_score(cell, sets[cell.adapters], style, scorers, store) for cell in cells]
    results = _save(cells, scores, store, generation, prompts)
    return document("grid", asdict(request), **results)


def _sets(texts: Sequence[str] | None, specs: Sequence[LoraSpec]) -> dict[str, list[LoraSpec]]:
    """Label -> LoRAs of each row."""
    by_name = {spec.name: spec for spec in specs}
    sets = {}
    for text in texts or ["+".join(by_name)]:
        names = [name.strip() for name in text.split("+")]
        for name in names:
            if name not in by_name:
                raise CliError(f"--set {text}: expected names among {', '.join(by_name)}")
        sets[" + ".join(names)] = [by_name[name] for name in names]
    return sets


def _factors(text: str) -> list[float]:
    try:
        factors = [float(part) for part in text.split(",")]
    except ValueError:
        factors = [math.nan]
    if not all(map(math.isfinite, factors)):
        raise CliError(f"--weight: expected numbers such as 0.6,0.8,1; got {text!r}")
    return list(dict.fromkeys(factors))


def _scorers(request: GridRequest, style: str | None) -> list[Any]:
    names = ["embedded"] if style and request.scorers is None else words(request.scorers or "")
    for name in names:
        if name not in SCORERS or (name == "embedded" and not style):
            raise CliError(
                f"--scorers: expected some of {', '.join(SCORERS)}, embedded for embedded LoRAs "
                f"only; got {name!r}"
            )
    return make_scorers(names, request, style)


def _score(
    cell: Cell,
    members: Sequence[LoraSpec],
    style: str | None,
    scorers: Sequence[Any],
    store: lab.ImageStore,
) -> dict[str, Any]:
    combination = ()
    if scorers and scorers[0].name == "embedded":
        entries = {e.id: e for entries in lab.embedded(style).info.values() for e in entries}
        combination = tuple(entries[spec.name] for spec in members)
    scene = Scene(store.path(cell.job), combination, cell.job.prompt)
    return {name: value for scorer in scorers for name, value in scorer.score(scene).items()}


def _save(
    cells: Sequence[Cell],
    scores: Sequence[dict[str, Any]],
    store: lab.ImageStore,
    generation: lab.Generation,
    prompts: dict[str, str],
) -> dict[str, Any]:
    notes, tiles, told = [], [], []
    for cell, found in zip(cells, scores, strict=True):
        record = store.record(cell.job)
        shown = [f"{name} {found[name]:.2f}" for name in SHOWN if name in found]
        notes.append(" · ".join([f"{record['seconds']:.2f} s", *shown]))
        with Image.open(store.path(cell.job)) as file:
            image = file.convert("RGB")
        image.thumbnail((LARGEST, LARGEST))
        tiles.append(Tile(cell.column, image, f"{notes[-1]}\n{cell.row}"))
        place = {"row": cell.row, "column": cell.column}
        ran = {name: record[name] for name in ("image", "seconds")}
        told.append({**place, **ran, "scores": found})
    steps = f"{generation.steps} steps, guidance {generation.guidance_scale:g}"
    facts = {
        "model": generation.model,
        "painted with": steps,
        **{f"prompt of {label}": prompt for label, prompt in prompts.items()},
    }
    title = "\n".join(f"{name}: {fact}" for name, fact in facts.items())
    columns = len(dict.fromkeys(cell.column for cell in cells))
    png, web = store.folder / "grid.png", store.folder / "grid.html"
    contact_sheet(tiles, title, columns=columns).save(png)
    web.write_text(page("cmlora grid", facts, cells, store, notes), encoding="utf-8")
    return {
        "html": str(web),
        "png": str(png),
        "generation": asdict(generation),
        "cells": told,
        "manifest": str(store.folder / "manifest.jsonl"),
    }
