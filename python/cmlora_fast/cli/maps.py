"""What CLoRA looked at: attention maps and masks over the image, step by step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .images import make_folder
from .sheet import Tile, contact_sheet

__all__ = ["save_maps"]

FILMSTRIP = "filmstrip.png"
COLOURS = ((230, 60, 60), (50, 110, 235), (40, 165, 75), (240, 150, 20), (150, 70, 200))
STRENGTH = 0.7  # of the colour where a map is highest
FRAMES, FRAME = 8, 160  # steps in the filmstrip and their size in pixels


def save_maps(folder: Path, image: Image.Image, summary: Any, title: str) -> list[Path]:
    """Write one overlay per concept, step and kind, and a filmstrip; returns their paths.

    Args:
        folder: Made if it is missing; files of these names are replaced.
        image: The painted image, shown faintly below.
        summary: Of a recorded call with CLoRA.
        title: Of the filmstrip.
    """
    make_folder(folder, "--save-maps")
    paths, strips = [], []
    steps = len(summary.steps)
    shown = sorted({round(i * (steps - 1) / max(1, FRAMES - 1)) for i in range(FRAMES)})
    for number, (row, label) in enumerate(_concepts(summary)):
        colour = COLOURS[number % len(COLOURS)]
        for kind, layers in (("map", _maps(summary, row)), ("mask", summary.masks[:, row])):
            frames = [_overlay(image, layer.numpy(), colour, kind) for layer in layers]
            for step, frame in enumerate(frames):
                path = folder / f"{label}_{kind}_{step:03}.png"
                frame.save(path)
                paths.append(path)
            strips += [
                Tile(f"{label} {kind}", _small(frames[step]), _note(summary, step, label, kind))
                for step in shown
            ]
    strips += [Tile("image", _small(image))]
    strip = folder / FILMSTRIP
    contact_sheet(strips, title, columns=len(shown), cell=FRAME).save(strip)
    return [*paths, strip]


def _concepts(summary: Any) -> Iterator[tuple[int, str]]:
    """Rows with a mask of their own, and a name for files that no other row has."""
    names = [row.adapter or "base" for row in summary.rows]
    for j, row in enumerate(summary.rows):
        if row.mask_tokens:
            yield j, names[j] if names.count(names[j]) == 1 else f"{names[j]}_{j}"


def _maps(summary: Any, row: int):
    """(T, r, q): mean over the tokens that make the row's mask."""
    return summary.maps[:, row, ..., list(summary.rows[row].mask_tokens)].mean(-1)


def _overlay(
    image: Image.Image, layer: np.ndarray, colour: tuple[int, int, int], kind: str
) -> Image.Image:
    """The faded image with the layer, from its least to its largest value, in colour on it."""
    resample = Image.Resampling.BILINEAR if kind == "map" else Image.Resampling.NEAREST
    if kind == "map":
        layer = (layer - layer.min()) / max(float(np.ptp(layer)), 1e-12)
    heat = Image.fromarray(np.uint8(255 * np.clip(layer, 0, 1))).resize(image.size, resample)
    alpha = STRENGTH * np.asarray(heat, np.float32)[..., None] / 255
    grey = np.asarray(image.convert("L").convert("RGB"), np.float32)
    return Image.fromarray(np.uint8(grey * (1 - alpha) + np.float32(colour) * alpha))


def _small(image: Image.Image) -> Image.Image:
    """At most a frame's size; the sheet enlarges what is smaller."""
    small = image.convert("RGB")
    small.thumbnail((FRAME, FRAME))
    return small


def _note(summary: Any, step: int, label: str, kind: str) -> str:
    record = summary.steps[step]
    if kind == "mask":
        return f"step {step} · {record.mask_area.get(label, 0):.0%}"
    loss = f" · loss {record.loss[-1]:.2f}" if record.loss else ""
    return f"step {step}{loss}"
