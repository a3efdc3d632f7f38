"""PNG files with their parameters inside, never written over another."""

from __future__ import annotations

import json
import os
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import CliError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["make_folder", "save_png"]

KEY = "parameters"  # of the tEXt chunk, where other tools look too


def make_folder(folder: Path, option: str = "--out") -> None:
    """Make the folder that ``option`` means; refuse one that cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CliError(f"{option}: cannot make the folder {folder}: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise CliError(f"{option}: the folder {folder} cannot be written to")


def save_png(image: Image.Image, path: Path, parameters: dict[str, Any]) -> Path:
    """Write a PNG and return its path: ``path``, or ``path`` with the first free number."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(KEY, json.dumps(parameters, default=str))  # ASCII: stays a tEXt chunk
    make_folder(path.parent)
    for number in count():
        free = path if number == 0 else path.with_stem(f"{path.stem}-{number}")
        try:
            with open(free, "xb") as file:  # fails if it exists, also when two processes race
                image.save(file, format="PNG", pnginfo=info)
        except FileExistsError:
            continue
        return free
    raise AssertionError("unreachable")
