"""The check that a LoRA file passes before a pipeline loads it, and how users name files."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import CliError
from .lora_match import misfits
from .lora_read import LoraFile, non_finite, read_lora

__all__ = ["LoraSpec", "check_fit", "check_lora", "embedded_style", "parse_specs", "resolve_path"]

COMPUTED = ("LoRA", "LoCon")
SHOWN = 3  # keys that an error names; it counts the rest
WEIGHTS_NAME = "pytorch_lora_weights.safetensors"  # what diffusers saves into a folder


@dataclass(frozen=True)
class LoraSpec:
    """One ``--lora``: adapter name, file and weight."""

    name: str
    path: Path
    weight: float


def check_lora(
    path: str | Path, unet: Any = None, text_encoders: Mapping[str, Any] | None = None
) -> LoraFile:
    """Refuse a file that would not be computed rightly.

    Args:
        path: A safetensors file.
        unet: The UNet it is meant for; None: its architecture is not checked.
        text_encoders: "text_encoder", "text_encoder_2" -> module, as far as the pipeline has them.

    Raises:
        CliError: One line that names the file, what it is and what it should be.
    """
    file = read_lora(path)
    if file.kind == "unknown":
        raise CliError(
            f"{path}: not a LoRA: none of its {file.tensors} tensors is one "
            f"({_some(file.other_keys)}); expected keys such as lora_A.weight or lora_down.weight"
        )
    if file.kind not in COMPUTED:
        raise CliError(f"{path}: is {file.kind}; expected plain LoRA (Linear and Conv2d layers)")
    if file.other_keys:
        raise CliError(
            f"{path}: {len(file.other_keys)} of its {file.tensors} keys are not plain LoRA "
            f"({_some(file.other_keys)})"
        )
    if bad := non_finite(path):
        raise CliError(
            f"{path}: NaN or infinity in {len(bad)} of its {file.tensors} tensors "
            f"({_some(bad)}); expected finite numbers"
        )
    if unet is not None:
        check_fit(file, {"unet": unet, **(text_encoders or {})})
    return file


def check_fit(file: LoraFile, models: Mapping[str, Any]) -> None:
    """Refuse a file whose layers are not the models' (component -> module)."""
    wrong = misfits(file, models)
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise CliError(
            f"{file.path}: made for another architecture: {len(wrong)} of its "
            f"{len(file.layers)} layers do not fit: {'; '.join(map(str, wrong[:SHOWN]))}{more}"
        )


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


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:SHOWN]) + (", …" if len(keys) > SHOWN else "")
