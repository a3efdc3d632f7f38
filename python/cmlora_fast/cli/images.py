"""PNG files with their parameters inside, never written over another."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .errors import CliError

__all__ = ["read_parameters", "save_png"]

KEY = "parameters"  # of the tEXt chunk, where other tools look too


def save_png(image: Image.Image, path: Path, parameters: dict[str, Any]) -> Path:
    """Write a PNG and return its path: ``path``, or ``path`` with the first free number."""
    info = PngInfo()
    info.add_text(KEY, json.dumps(parameters, default=str))  # ASCII: stays a tEXt chunk
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in count():
        free = path if number == 0 else path.with_stem(f"{path.stem}-{number}")
        try:
            with open(free, "xb") as file:  # fails if it exists, also when two processes race
                image.save(file, format="PNG", pnginfo=info)
        except FileExistsError:
            continue
        return free
    raise AssertionError("unreachable")


def read_parameters(path: Path) -> dict[str, Any]:
    """The parameters that ``save_png`` wrote into a file."""
    with Image.open(path) as image:
        text = image.info.get(KEY)
    if text is None:
        raise CliError(f"{path}: holds no {KEY!r} metadata")
    return json.loads(text)
