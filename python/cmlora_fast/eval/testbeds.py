"""What is composed: a base prompt and LoRAs by category, embedded or from a ComposLoRA folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import testbed
from .lora_info import LoraEntry, read_lora_info
from .presets import read_prompts

__all__ = ["EMBEDDED", "Testbed", "composlora", "embedded"]

EMBEDDED = "embedded"  # the name of the testbed and of the model inside the package

# Where a ComposLoRA folder keeps its weights: the predecessor's place, CMLoRA's, and short ones.
LORA_FOLDERS = ("models/lora/{style}", "LoRA_Cache/models/lora/{style}", "lora/{style}", "{style}")


@dataclass(frozen=True)
class Testbed:
    """LoRAs that can be composed, and how a prompt calls them.

    Args:
        name: "embedded" or the folder.
        info: Category -> LoRAs, in prompt order.
        paths: id -> safetensors file.
        base_prompt: What every prompt starts with.
        negative_prompt: Of every image.
    """

    name: str
    info: dict[str, list[LoraEntry]]
    paths: dict[str, Path]
    base_prompt: str
    negative_prompt: str

    def prompt(self, combination: Sequence[LoraEntry]) -> str:
        """The base prompt, then all trigger words in the order of the combination."""
        return ", ".join([self.base_prompt, *(w for entry in combination for w in entry.trigger)])


def embedded(style: str = "anime") -> Testbed:
    """One style of the testbed inside the package."""
    info = {
        category: [LoraEntry.model_validate(entry) for entry in entries]
        for category, entries in testbed.lora_info(style).items()
    }
    paths = {e.id: testbed.lora_path(e.id, style) for entries in info.values() for e in entries}
    return Testbed(EMBEDDED, info, paths, testbed.prompt([]), testbed.NEGATIVE_PROMPT)


def composlora(
    folder: str | Path,
    style: str,
    *,
    lora_path: str | Path | None = None,
    lora_info: str | Path | None = None,
    prompt: str | None = None,
    negative: str | None = None,
) -> Testbed:
    """A copy of ComposLoRA: ``{style}_lora_info.json``, LoRA files, and the prompts of its code.

    Args:
        folder: The copy.
        style: "anime" or "reality", or another that the folder holds.
        lora_path: Folder of ``{id}.safetensors``; None: one of LORA_FOLDERS.
        lora_info: The info file; None: ``{style}_lora_info.json``.
        prompt: Base prompt; None: read from the folder's ``utils.py``.
        negative: Negative prompt; None: read from there.

    Raises:
        ValueError: Something is missing or malformed; names it.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise ValueError(f"testbed: expected 'embedded' or a folder; got {str(folder)!r}")
    info = read_lora_info(lora_info or folder / f"{style}_lora_info.json")
    place = _lora_folder(folder, style) if lora_path is None else Path(lora_path).expanduser()
    paths = {e.id: place / f"{e.id}.safetensors" for entries in info.values() for e in entries}
    if prompt is None or negative is None:
        found = read_prompts(folder / "utils.py", style)
        prompt = found[0] if prompt is None else prompt
        negative = found[1] if negative is None else negative
    return Testbed(str(folder), info, paths, prompt, negative)


def _lora_folder(folder: Path, style: str) -> Path:
    places = [folder / place.format(style=style) for place in LORA_FOLDERS]
    for place in places:
        if place.is_dir():
            return place
    raise ValueError(f"{folder}: no LoRA files: expected one of {', '.join(map(str, places))}")
