"""How users name LoRA files: path, weight, ids of the embedded ones."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import CliError

__all__ = ["LoraSpec", "embedded_style", "parse_specs", "resolve_path"]

WEIGHTS_NAME = "pytorch_lora_weights.safetensors"  # what diffusers saves into a folder


@dataclass(frozen=True)
class LoraSpec:
    """One ``--lora``: adapter name, file and weight."""

    name: str
    path: Path
    weight: float


def parse_specs(texts: Sequence[str], embedded: bool = False) -> list[LoraSpec]:
    """``path:weight`` of every ``--lora``; names are file stems, a second one gets a number.

    ``embedded``: ids of the embedded LoRAs stand for their files too.
    """
    specs: list[LoraSpec] = []
    for text in texts:
        place, weight = _split(text)
        path = resolve_path(place, embedded)
        stem = path.parent.name if path.name == WEIGHTS_NAME else path.stem
        # PEFT puts adapter names into module names, where a dot would part them.
        stem = re.sub(r"[^\w-]", "_", stem) or "lora"
        names, number, name = {spec.name for spec in specs}, 2, stem
        while name in names:
            name, number = f"{stem}_{number}", number + 1
        specs.append(LoraSpec(name, path, weight))
    return specs


def resolve_path(place: str, embedded: bool = True) -> Path:
    """The file meant: a file, a folder that diffusers saved, an embedded `id` or `style/id`."""
    path = Path(place).expanduser()
    if (path / WEIGHTS_NAME).is_file():
        return path / WEIGHTS_NAME
    if embedded and not path.exists() and path.suffix == "":
        from cmlora_fast import testbed

        style, _, id = place.rpartition("/")
        if id in testbed.IDS and style in ("", *testbed.STYLES):
            return testbed.lora_path(id, style or testbed.STYLES[0])
    return path


def embedded_style(specs: Sequence[LoraSpec]) -> str | None:
    """The style of the embedded testbed that all the LoRAs are of; None: they are of none."""
    from cmlora_fast import testbed

    for style in testbed.STYLES:
        paths = {id: testbed.lora_path(id, style) for id in testbed.IDS}
        if all(spec.path == paths.get(spec.name) for spec in specs):
            return style
    return None


def _split(text: str) -> tuple[str, float]:
    """A path may hold ``:`` itself: only a number after the last one is a weight."""
    place, colon, tail = text.rpartition(":")
    if not colon or not place or Path(text).expanduser().exists():
        return text, 1.0
    try:
        weight = float(tail)
    except ValueError:
        if resolve_path(place).exists():
            expected = "expected a weight, a number, after the last ':'"
            raise CliError(f"--lora {text}: {expected}; got {tail!r}") from None
        return text, 1.0
    if not math.isfinite(weight):
        raise CliError(f"--lora {text}: expected a finite weight after the last ':'; got {tail}")
    return place, weight
