"""The pictures of the demo's contact sheet, and how they are painted."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cmlora_fast as cf
from cmlora_fast import testbed
from cmlora_fast.eval import EMBEDDED, Adapter, Generation, Job
from cmlora_fast.eval.paint import activate, call, rows_of
from cmlora_fast.eval.scorers.base import PRESENT
from cmlora_fast.report import each_step, progress

from .errors import CliError
from .pipelines import load_pipeline
from .sheet import Tile, contact_sheet

__all__ = ["Picture", "Subject", "embedded_subject", "paint_demo", "pictures_of"]

# LoRAs of something, worn, somewhere, and the words of the prompt that CLoRA looks for.
WORDS = {
    "character_1": "pink afro hair",
    "clothing_2": "bow tie",
    "background_2": "night sky",
}
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
class Picture:
    """One picture: its file stem, its label, the active adapters and the method."""

    key: str
    label: str
    adapters: tuple[str, ...]
    method: Any = None

    @property
    def weight(self) -> float:
        """Of every adapter: what suits the method."""
        return cf.recommended_weights(self.method, max(1, len(self.adapters)))


@dataclass(frozen=True)
class Subject:
    """What every picture has in common: adapters with their readable names, and the prompt.

    ``shows``: gives the probability of each adapter's concept in an image; None: nobody can tell.
    """

    adapters: dict[str, str]
    prompt: str
    negative: str = ""
    guidance_scale: float = testbed.GUIDANCE
    concepts: tuple[cf.Concept, ...] = ()
    shows: Callable[[Any], Mapping[str, float]] | None = None

    def job(self, picture: Picture, steps: int, seed: int) -> Job:
        generation = Generation(EMBEDDED, "", self.negative, steps, self.guidance_scale)
        adapters = tuple(Adapter(name, "", picture.weight) for name in picture.adapters)
        return Job(generation, self.prompt, adapters, picture.method, seed)


def pictures_of(subject: Subject) -> list[Picture]:
    """No LoRA, each alone, then all of them by every method; CLoRA where there are concepts."""
    adapters = subject.adapters
    alone = [Picture(name, f"{label} alone", (name,)) for name, label in adapters.items()]
    names = tuple(adapters)
    together = [Picture(key, label, names, method) for key, label, method in METHODS]
    if subject.concepts:
        together.append(Picture("clora", "CLoRA", names, cf.CLoRA(concepts=subject.concepts)))
    return [Picture("no_lora", "no LoRA", ()), *alone, *together]


def embedded_subject() -> tuple[Any, Subject]:
    """The embedded model with the demo's LoRAs loaded."""
    pipe = load_pipeline(EMBEDDED)
    try:
        testbed.load_loras(pipe, list(WORDS))
    except OSError as error:
        raise CliError("the embedded LoRAs are missing from this installation") from error
    named = {entry["id"]: entry["name"] for kind in testbed.lora_info().values() for entry in kind}
    labels = {name: named[name] for name in WORDS}
    concepts = tuple(cf.Concept(name, words) for name, words in WORDS.items())
    prompt = testbed.prompt(list(WORDS))
    scorer = testbed.Scorer()
    return pipe, Subject(
        labels,
        prompt,
        testbed.NEGATIVE_PROMPT,
        concepts=concepts,
        shows=lambda image: scorer.score([image])[0],
    )


def paint_demo(pipe: Any, subject: Subject, *, out: Path, steps: int, seed: int) -> dict[str, Any]:
    """Paint every picture and the sheet into ``out``; returns what the report tells of them."""
    pictures = pictures_of(subject)
    folder = out / "images"
    folder.mkdir(parents=True, exist_ok=True)
    tiles, told = [], []
    with progress(steps * len(pictures), "warming up") as advance:
        # The first call pays for what torch sets up.
        call(pipe, subject.job(pictures[0], 1, seed))
        for picture in pictures:
            advance(0, description=picture.label)
            started = time.perf_counter()
            job = subject.job(picture, steps, seed)
            image, summary = call(pipe, job, callback=each_step(advance))
            seconds = time.perf_counter() - started
            path = folder / f"{picture.key}.png"
            image.save(path)
            shown = _shown(subject, image)
            tiles.append(Tile(picture.label, image, _note(picture, shown, seconds)))
            told.append(_told(picture, path, seconds, summary) | {"shown": shown})
    activate(pipe, list(subject.adapters), [1.0] * len(subject.adapters))
    title = f"{subject.prompt}\nseed {seed} · {steps} steps · guidance {subject.guidance_scale:g}"
    sheet = out / SHEET
    contact_sheet(tiles, title, columns=COLUMNS).save(sheet)
    given = {"prompt": subject.prompt, "negative": subject.negative, "adapters": subject.adapters}
    return {"sheet": str(sheet), **given, "cells": told}


def _shown(subject: Subject, image: Any) -> list[str] | None:
    """Adapters whose concept the scorer finds in the image."""
    if subject.shows is None:
        return None
    found = subject.shows(image)
    return [name for name in subject.adapters if found[name] > PRESENT]


def _note(picture: Picture, shown: list[str] | None, seconds: float) -> str:
    """What stands below a picture: weight, how many of all concepts are found in it, time."""
    parts = [f"weight {picture.weight:g}"] if picture.adapters else []
    if shown is not None:
        parts.append(f"finds {len(shown)}")
    return " · ".join([*parts, f"{seconds:.2f} s"])


def _told(picture: Picture, path: Path, seconds: float, summary: cf.Summary) -> dict[str, Any]:
    rows = rows_of(summary)
    return {
        "key": picture.key,
        "label": picture.label,
        "adapters": list(picture.adapters),
        "weight": picture.weight,
        "image": str(path),
        "seconds": seconds,
        "full": rows["full_rows"],
        "shallow": rows["shallow_rows"],
        "summary": summary.to_dict(),
    }
